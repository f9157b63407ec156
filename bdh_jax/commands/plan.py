"""Say what a training takes of chips that are not here: ``bdh plan text:official --topology=v5p:8x8x8``.

    bdh plan text:official --topology=v5e:2x2 --mesh=data:4
    bdh plan scale:1b --topology=v5p:8x8x8 --mesh=data:64,heads:8 --batch=1024
    bdh plan scale:1b --topology=v5p:4x4x4 --search

Chips are v5e, v5p, v6e (TPUs: shapes as 2x2 and 4x4x4), h100 (h100:8) and cpu (cpu:8). A mesh names its axes: data, sequence, heads, neurons,
and fsdp to split weights over data as well; the chips that are left go to data.

Prints what a step needs on a chip, by declarations and as the chip's own compiler has it, what it sends and how long it takes at the
chip's stated rates. A plan that does not fit says what to change, and the exit status is 1. --search ranks meshes, batch sizes and
recomputation by declarations, and compiles the best.

The compiler runs in a process of its own, which needs libtpu (pip install "bdh_jax[compile-tpu]") or CUDA's ("bdh_jax[compile-gpu]"), if not
here then in another environment, --python=PATH. Without either the step is compiled for CPU devices: what it sends is the same, its
temporaries are not. --nocompile takes declarations alone, in a second.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

from bdh_jax.commands._flags import define_config, define_path
from bdh_jax.commands._plans import (
    Plan,
    compile_step,
    describe_mesh,
    describe_save,
    gigabytes,
    plan,
    remedies,
    search,
    with_mesh,
)
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.console import output, show
from bdh_jax.parallel.chips import read_topology

_CONFIG = define_config()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Chips: v5e:2x2, v5p:8x8x8, v6e:4x4, h100:8, cpu:8.")
_MESH = flags.DEFINE_string(
    "mesh", None, "Axes and their lengths, data:64,heads:8,fsdp. Default: that of the configuration."
)
_BATCH = flags.DEFINE_integer("batch", None, "Sequences a step, instead of train.batch_size.", lower_bound=1)
_SEARCH = flags.DEFINE_bool("search", False, "Rank meshes, batch sizes and recomputation, and plan the best.")
_COMPILE = flags.DEFINE_bool("compile", True, "Compile the step; --nocompile takes declarations alone.")
_PYTHON = define_path("python", "Interpreter of an environment that has the chip's compiler, if this one has not.")
_STORAGE = flags.DEFINE_float(
    "storage",
    0.5,
    "GB a second that a machine saves: writes, and reads back from there. benchmarks/saving.py measures it.",
    lower_bound=1e-6,
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables.")
SHOWN = 10
"""Plans that a search shows."""
QUIET = True
_WORDS = {
    "parameters": "parameters",
    "optimizer": "optimiser state",
    "state": "carried state, histories",
    "batch": "batch",
    "gradients": "gradients",
    "weights": "weights as computed with",
    "activations": "activations",
}


def main(argv: Sequence[str]) -> int:
    """Print the plan that the flags ask for. Returns 1 if it does not fit.

    Raises:
      ConfigError: a flag is missing or wrong, or the mesh does not fit the chips, the model or the batch.
    """
    del argv
    config = _CONFIG.value
    if config is None:
        raise ConfigError("--config is missing: name an experiment, such as `bdh plan text:official`; `bdh list` has all")
    if _TOPOLOGY.value is None:
        raise ConfigError("--topology is missing: name chips and their shape, such as --topology=v5e:2x2 or h100:8")
    topology = read_topology(_TOPOLOGY.value)
    if _BATCH.value is not None:
        config = change(config, "train", batch_size=_BATCH.value)
    ranked: list[Plan] = []
    if _SEARCH.value:
        if _MESH.value is not None:
            raise ConfigError(f"--search looks for meshes, and --mesh={_MESH.value} names one; leave out one of them")
        ranked = search(config, topology)
    chosen = ranked[0] if ranked else plan(with_mesh(config, topology, _MESH.value), topology)
    if _COMPILE.value and chosen.fits is not False:
        python = None if not _PYTHON.value else Path(_PYTHON.value)
        chosen = plan(chosen.config, topology, compile_step(chosen, python))
    others = remedies(chosen) if chosen.fits is False else []
    if _JSON.value:
        seconds = chosen.saved / (_STORAGE.value * 1e9)
        found = {**chosen.to_dict(), "save_seconds": seconds, "ranked": [one.to_dict() for one in ranked[:SHOWN]]}
        print(json.dumps({**found, "remedies": [{"flags": text, **one.to_dict()} for text, one in others]}, indent=2))
    else:
        if ranked:
            show(_ranking(ranked))
            print()
        _print(chosen, others)
    return 1 if chosen.fits is False else 0


def _print(one: Plan, others: Sequence[tuple[str, Plan]]) -> None:
    show(_memory(one))
    output().print()
    output().print(_verdict(one))
    for text, other in others:
        output().print(f"- fits with {text} ({gigabytes(other.takes)})")
    if one.fits is False:
        if not others:
            output().print("- nothing that the plan can change makes it fit: take more chips, or a smaller model")
        return
    output().print(describe_save(one, _STORAGE.value))
    print()
    show(_traffic(one))
    if one.chip is not None and one.measured_cost is not None:
        print()
        show(_times(one))


def _name(one: Plan) -> str:
    train, model = one.config.train, one.config.model
    length = one.tokens // train.batch_size
    parts = [f"{one.topology}, {describe_mesh(one.config.mesh)}", f"{train.batch_size} × {length} tokens a step"]
    parts += [f"in {train.accumulation} slices"] if train.accumulation > 1 else []
    return ", ".join([*parts, *(["recomputing"] if model.remat else [])])


def _memory(one: Plan) -> Table:
    table = Table(title=_name(one), caption=_compiler(one))
    for name, justify in (("a chip's", "left"), ("declared", "right"), ("compiled", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType] - a word that rich knows
    needs, compiled = one.needs, {} if one.refused or one.compiled is None else one.compiled
    for name, size in needs._asdict().items():
        if size or size is None:
            table.add_row(f"  {_WORDS[name]}", "not declared" if size is None else gigabytes(size), "")
    for name in ("arguments", "temporaries"):
        declared, found = getattr(needs, name), compiled.get(name)
        table.add_row(name, "" if declared is None else gigabytes(declared), "" if found is None else gigabytes(found))
    return table


def _compiler(one: Plan) -> str:
    if one.compiled is None:
        return "not compiled"
    versions = ", ".join(f"{name} {version}" for name, version in one.compiled["versions"].items() if version)
    if one.compiled["topology"] != str(one.topology):
        return (
            f"compiled for {one.compiled['topology']}, since the compiler of {one.topology.name} is not installed here: what is sent is the "
            f"same, temporaries are not ({versions})"
        )
    return f"compiled for {one.compiled['topology']} ({versions})"


def _verdict(one: Plan) -> str:
    if one.refused:
        return f"does not fit: the compiler refuses it. {one.refused[:300]}"
    if one.chip is None:
        return f"takes {gigabytes(one.takes)} on each device; nothing is known of the memory of a CPU"
    word, how = ("fits" if one.fits else "does not fit"), "as compiled" if one.own_compiler else "by declarations"
    return (
        f"{word}: {gigabytes(one.takes)} of {gigabytes(one.chip.memory)} on a chip, {how}; the largest part is "
        f"{_WORDS[one.needs.dominant]}"
    )


def _traffic(one: Plan) -> Table:
    compiled = one.compiled is not None and not one.refused
    table = Table(title=f"sent by a chip in a step, {'as compiled' if compiled else 'by declarations'}")
    for name in ("collective", "over"):
        table.add_column(name)
    table.add_column("MB", justify="right")
    for (kind, axes), size in sorted(one.sent.items(), key=lambda item: -item[1]):
        table.add_row(kind, " × ".join(axes), f"{size / 1e6:.2f}")
    if not one.sent:
        table.add_row("nothing", "", "0")
    return table


def _times(one: Plan) -> Table:
    cost, chip = one.measured_cost, one.chip
    assert cost is not None
    assert chip is not None
    seconds, step = cost.seconds(chip), cost.step(chip)
    table = Table(
        title="a step, at the chip's stated rates",
        caption=f"{step * 1e3:.1f} ms a step, {one.tokens / step:,.0f} tokens a second, {cost.share_of_peak(chip):.0%} of peak, bound by "
        f"{cost.bound(chip)}; computing and memory overlap, the network does not. No program reaches all of these rates.",
    )
    for name, justify in (("", "left"), ("a chip", "right"), ("ms", "right")):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType] - a word that rich knows
    rows = (
        ("compute", f"{cost.flops / 1e12:.2f} Tflop"),
        ("memory", f"{cost.moved / 1e9:.2f} GB moved"),
        ("network", f"{cost.sent / 1e9:.3f} GB sent"),
    )
    for name, what in rows:
        table.add_row(name, what, f"{seconds[name] * 1e3:.1f}")
    return table


def _ranking(ranked: Sequence[Plan]) -> Table:
    table = Table(title=f"{len(ranked)} plans fit by declarations; the best {min(SHOWN, len(ranked))}")
    for name in ("mesh", "batch", "slices", "recomputing"):
        table.add_column(name)
    for name in ("GB", "tokens/s", "of peak", "bound by"):
        table.add_column(name, justify="right")
    for one in ranked[:SHOWN]:
        cost, chip, train = one.measured_cost, one.chip, one.config.train
        assert cost is not None
        assert chip is not None
        table.add_row(
            describe_mesh(one.config.mesh),
            str(train.batch_size),
            str(train.accumulation),
            "yes" if one.config.model.remat else "no",
            f"{one.takes / 1e9:.1f}",
            f"{one.tokens / cost.step(chip):,.0f}",
            f"{cost.share_of_peak(chip):.0%}",
            cost.bound(chip),
        )
    return table
