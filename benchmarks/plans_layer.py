"""What the layers of a BDH send over 8 ways of a mesh axis: JSON in, JSON out. Of ``plans.py``, which runs it in two checkouts.

It uses what both have, and reads collectives with this checkout's parser.
"""

from __future__ import annotations

import collections
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PARSER = Path(__file__).resolve().parents[1] / "bdh_jax" / "parallel" / "programs.py"
SPLIT = {
    "heads": {"encoder": P(None, "heads"), "encoder_v": P("heads"), "decoder": P("heads")},
    "neurons": {"encoder": P(None, None, "neurons"), "encoder_v": P(None, None, "neurons"), "decoder": P(None, "neurons")},
}
"""How the weights lie whose neurons are split."""


def parser() -> Any:
    """The module that reads collectives, whatever package is imported here."""
    spec = importlib.util.spec_from_file_location("programs", PARSER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["programs"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Compile the gradient of a loss and count what is sent: "bytes kind over axes" → how often."""
    from bdh_jax import BDH, BDHConfig, FastWeightConfig

    request = json.load(sys.stdin)
    axis = request["axis"]
    names = ("data", "sequence", "heads", "neurons") if axis == "heads" else ("data", "neurons")
    devices = np.array(topologies.get_topology_desc(platform="tpu", topology_name=request["topology"]).devices)
    shape = tuple(devices.size if name == axis else 1 for name in names)
    mesh = Mesh(devices.reshape(shape), names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))
    config = BDHConfig(n_layer=request["layers"], dtype="bfloat16", fast=FastWeightConfig(enabled=False), **request["model"])
    model = BDH(config, mesh)
    tokens = jax.ShapeDtypeStruct((request["batch"], request["length"]), jnp.int32, sharding=NamedSharding(mesh, P()))
    shapes = jax.eval_shape(lambda: BDH(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32)))["params"]
    slow = {
        name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, SPLIT[axis].get(name, P())))
        for name, leaf in shapes.items()
    }

    def loss(slow: Any, tokens: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(model.apply({"params": slow}, tokens, state="none").logits))

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss)).lower(slow, tokens).compile()
    found: collections.Counter[str] = collections.Counter()
    for one in parser().collectives(program.as_text(), dict(mesh.shape)):
        found[f"{one.size} {one.kind} over {','.join(one.axes)}"] += one.times
    print(json.dumps(found))


if __name__ == "__main__":
    main()
