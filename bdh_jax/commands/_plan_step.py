"""A training step through the compiler of a chip, in a process of its own: JSON in, JSON out.

    python -m bdh_jax.commands._plan_step < request.json

A compiler of an accelerator reads its environment when JAX starts, and may take a process with it that asks too much of it.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def compiled(request: dict[str, Any]) -> dict[str, Any]:
    """What the compiler says of a step.

    Args:
      request: "config", an experiment as JSON, and "topology".

    Returns:
      Bytes of arguments, outputs, those of them that are in place, temporaries; flops and bytes that move, where it counts them; collectives
      by kind and axes, in bytes that a device sends; or, of a program that it refuses, "refused" with what it says.
    """
    from bdh_jax.config import ConfigError
    from bdh_jax.experiment import experiment_from, setup_of
    from bdh_jax.parallel import chips
    from bdh_jax.parallel.programs import collectives, total
    from bdh_jax.training.planning import lower_step

    start = time.perf_counter()
    topology = chips.read_topology(request["topology"])
    config = experiment_from(request["config"])
    batch = config.task.shapes(config.train.batch_size)
    lowered, mesh = lower_step(setup_of(config), batch, chips.devices(topology))
    found: dict[str, Any] = {"topology": str(topology), "versions": chips.versions(topology.platform)}
    try:
        program = lowered.compile()
    except Exception as error:  # a compiler refuses in many ways
        said = " ".join(str(error).split())
        return found | {"refused": said[:500], "seconds": round(time.perf_counter() - start, 1)}
    memory, costs, text = program.memory_analysis(), program.cost_analysis() or {}, program.as_text()
    if memory is None or text is None:
        raise ConfigError(f"--topology={topology}: its compiler does not say what a program takes; give --nocompile")
    sent = total(collectives(text, dict(mesh.shape)))
    return found | {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "in_place": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "flops": costs.get("flops"),
        "bytes": costs.get("bytes accessed"),
        "collectives": [{"kind": kind, "axes": list(axes), "bytes": size} for (kind, axes), size in sorted(sent.items())],
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> int:
    """Answer the request on standard input; what goes wrong is an answer too."""
    request = json.load(sys.stdin)
    from bdh_jax.config import ConfigError

    try:
        answer = compiled(request)
    except ConfigError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
