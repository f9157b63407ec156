"""Plans of a training on chips that need not be there: by declarations, by the chip's compiler, and what else would fit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.experiment import ExperimentConfig, setup_of
from bdh_jax.parallel.chips import CHIPS, Chip, Topology, environment, missing
from bdh_jax.parallel.mesh import MESH_AXES, MeshConfig
from bdh_jax.runs.folder import config_json
from bdh_jax.training.planning import Cost, Needs, declared_collectives, declared_cost, needs

MOST_CPU_DEVICES = 64
"""CPU devices that are made at most, where a chip's own compiler is not there."""
NOTICE = 30.0
"""Seconds that a machine that is taken away gives at least, as spot TPUs and Slurm's default do."""
LONG = 8192
"""Tokens of a window from which on a search splits time."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a training takes of a device.

    Attributes:
      config: what is trained, on which mesh.
      topology: the chips.
      needs: declared bytes.
      cost: what a step does, by declarations; None where the model declares no activations.
      compiled: what the compiler says of the step (``bdh_jax.commands._plan_step``); None where it was not asked.
    """

    config: ExperimentConfig
    topology: Topology
    needs: Needs
    cost: Cost | None
    compiled: Mapping[str, Any] | None = None

    @property
    def chip(self) -> Chip | None:
        """What is known of the chips; None of CPU devices."""
        return self.topology.chip

    @property
    def own_compiler(self) -> bool:
        """Whether it was compiled by the chip's own compiler, and was taken."""
        return self.compiled is not None and self.compiled["topology"] == str(self.topology) and not self.refused

    @property
    def refused(self) -> str:
        """What a compiler says that refuses the step; empty if none does."""
        return "" if self.compiled is None else self.compiled.get("refused", "")

    @property
    def takes(self) -> int:
        """Bytes on a chip: as its compiler has it, otherwise as declared."""
        if self.compiled is not None and self.own_compiler:
            return (
                self.compiled["arguments"]
                + self.compiled["outputs"]
                - self.compiled["in_place"]
                + self.compiled["temporaries"]
            )
        return self.needs.total

    @property
    def fits(self) -> bool | None:
        """Whether it fits a chip's memory; None where that is not known."""
        if self.refused:
            return False
        return None if self.chip is None else self.takes <= self.chip.memory

    @property
    def sent(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """(kind, axes) → bytes that a chip sends in a step: as compiled, otherwise as declared."""
        if self.compiled is not None and not self.refused:
            return {(one["kind"], tuple(one["axes"])): one["bytes"] for one in self.compiled["collectives"]}
        found: dict[tuple[str, tuple[str, ...]], float] = {}
        for one in _declared(self.config) or ():
            found[one.kind, one.axes] = found.get((one.kind, one.axes), 0.0) + one.sent
        return found

    @property
    def measured_cost(self) -> Cost | None:
        """What a step does: operations as declared, since compilers count a loop once; bytes that move and are sent as compiled, if so."""
        if self.cost is None:
            return None
        cost = self.cost._replace(sent=sum(self.sent.values()))
        if self.compiled is not None and self.own_compiler and self.compiled["bytes"]:
            cost = cost._replace(moved=self.compiled["bytes"])
        return cost

    @property
    def saved(self) -> int:
        """Bytes of a checkpoint that the machine with most of them writes: of equal copies one chip's is saved."""
        mesh, size = self.config.mesh, self.topology.size
        machine = size if self.chip is None else min(size, self.chip.of_a_machine)
        parts = mesh.heads * mesh.neurons * (mesh.data if mesh.fsdp else 1)
        return (self.needs.parameters + self.needs.optimizer) * min(machine, parts) + self.needs.state * machine

    @property
    def tokens(self) -> int:
        """Tokens of a step, on all chips together."""
        return math.prod(self.config.task.shapes(self.config.train.batch_size).tokens.shape)

    def to_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        cost, chip = self.measured_cost, self.chip
        found: dict[str, Any] = {
            "topology": str(self.topology),
            "chips": self.topology.size,
            "mesh": {name: length for name, length in self.config.mesh.shape.items() if length > 1},
            "fsdp": self.config.mesh.fsdp,
            "batch_size": self.config.train.batch_size,
            "accumulation": self.config.train.accumulation,
            "remat": self.config.model.remat,
            "fits": self.fits,
            "takes": self.takes,
            "memory": None if chip is None else chip.memory,
            "saved": self.saved,
            "declared": {**self.needs._asdict(), "arguments": self.needs.arguments, "temporaries": self.needs.temporaries},
            "sent": [{"kind": kind, "axes": list(axes), "bytes": size} for (kind, axes), size in sorted(self.sent.items())],
            "compiled": None if self.compiled is None else dict(self.compiled),
        }
        if cost is not None:
            found["cost"] = cost._asdict()
        if cost is not None and chip is not None:
            found |= {
                "seconds": cost.seconds(chip),
                "step_seconds": cost.step(chip),
                "tokens_per_second": self.tokens / cost.step(chip),
                "share_of_peak": cost.share_of_peak(chip),
                "bound": cost.bound(chip),
            }
        return found


def _declared(config: ExperimentConfig) -> Any:
    return declared_collectives(setup_of(config), config.task.shapes(config.train.batch_size), config.mesh.shape)


def plan(config: ExperimentConfig, topology: Topology, compiled: Mapping[str, Any] | None = None) -> Plan:
    """The plan of an experiment whose mesh has as many devices as there are chips."""
    setup, batch, lengths = setup_of(config), config.task.shapes(config.train.batch_size), config.mesh.shape
    need = needs(setup, batch, lengths)
    return Plan(config, topology, need, declared_cost(setup, batch, lengths, need), compiled)


def with_mesh(config: ExperimentConfig, topology: Topology, text: str | None) -> ExperimentConfig:
    """The experiment on a mesh of all chips: that which ``text`` names, or its own; what it leaves goes to ``data``.

    Args:
      config: the experiment.
      topology: the chips.
      text: axes and lengths, "data:64,heads:8,fsdp"; None for the experiment's own mesh.

    Raises:
      ConfigError: for an axis that there is not, lengths that are not those of the chips, or what the model or the batch refuses.
    """
    mesh = dataclasses.replace(config.mesh, data=-1) if config.mesh.data == 1 else config.mesh
    if text is not None:
        lengths: dict[str, Any] = {"data": -1}
        for part in text.split(","):
            name, _, length = part.strip().partition(":")
            if name == "fsdp" and not length:
                lengths["fsdp"] = True
            elif name in MESH_AXES and length.isdigit() and int(length) > 0:
                lengths[name] = int(length)
            else:
                raise ConfigError(
                    f"--mesh={text}: {part!r} is none of {', '.join(MESH_AXES)} with a length after a colon, nor fsdp; such as "
                    "--mesh=data:64,heads:8,fsdp"
                )
        mesh = MeshConfig(**lengths)
    others = mesh.sequence * mesh.heads * mesh.neurons
    if mesh.data == -1:
        mesh = dataclasses.replace(mesh, data=max(1, topology.size // others))
    if mesh.data * others != topology.size:
        shape = " × ".join(f"{name} {length}" for name, length in mesh.shape.items() if length > 1) or "one device"
        raise ConfigError(
            f"--mesh of {shape} has {mesh.data * others} devices, and --topology={topology} {topology.size} chips; give a mesh of as many"
        )
    return dataclasses.replace(config, mesh=dataclasses.replace(mesh, distributed=False))


def compile_step(plan: Plan, python: Path | None = None) -> dict[str, Any]:
    """The step through the compiler of the plan's chips, or, where that is not installed, for as many CPU devices.

    Args:
      plan: what to compile.
      python: an interpreter whose environment has the compiler; None for this one.

    Raises:
      ConfigError: if there is no compiler for so many devices, or the step cannot be traced.
    """
    topology = plan.topology
    if python is None and missing(topology.platform):
        if topology.size > MOST_CPU_DEVICES:
            raise ConfigError(
                f"--topology={topology}: {', '.join(missing(topology.platform))} is not installed, and {topology.size} CPU devices instead of "
                f'chips are too many (at most {MOST_CPU_DEVICES}); pip install "bdh_jax[compile-{topology.platform}]", name an environment '
                "that has it with --python=PATH, or give --nocompile"
            )
        topology = Topology("cpu", (topology.size,))
    request = {"config": config_json(plan.config), "topology": str(topology)}
    root = Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {**os.environ, **environment(topology), "PYTHONPATH": os.pathsep.join(paths)}
    command = [str(python or sys.executable), "-m", "bdh_jax.commands._plan_step"]
    try:
        ended = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, env=variables, check=False
        )
    except OSError as error:
        raise ConfigError(
            f"--python={python} cannot be run: {error.strerror}; name the interpreter of an environment"
        ) from error
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or [f"status {ended.returncode}"])[-1]
        raise ConfigError(
            f"the compiler's process for --topology={topology} ended: {last}; give --nocompile to plan without it"
        )
    answer = json.loads(ended.stdout.splitlines()[-1])
    if "error" in answer:
        raise ConfigError(answer["error"])
    return answer


def search(config: ExperimentConfig, topology: Topology, batches: Sequence[int] | None = None) -> list[Plan]:
    """Plans that fit by declarations, those with the least time for a token first; arguments and errors as of :func:`candidates`."""
    return sorted((one for one in candidates(config, topology, batches) if one.fits), key=_seconds_of_a_token)


def candidates(config: ExperimentConfig, topology: Topology, batches: Sequence[int] | None = None) -> list[Plan]:
    """Plans on meshes of all chips, with weights split over ``data`` and without; with recomputation and without; in as many slices as
    configured and up to 64 times as many.

    Args:
      config: the experiment.
      topology: the chips.
      batches: sequences a step; None for as many as configured, half and twice as many.

    Raises:
      ConfigError: for a model that declares no activations, or chips of which nothing is known.
    """
    if topology.chip is None:
        raise ConfigError(
            f"--search on --topology={topology}: nothing is known of the rates of a CPU; name one of {', '.join(CHIPS)}"
        )
    rows = config.train.batch_size
    sizes = sorted({rows, 2 * rows, max(1, rows // 2)}) if batches is None else batches
    found = [plan(one, topology) for one in _variants(config, topology, sizes) if one is not None]
    if all(one.cost is None for one in found):
        raise ConfigError(
            f"--search needs declared activations, and a {config.model.architecture!r} model in this form has none; name a mesh"
        )
    return [one for one in found if one.cost is not None]


def fastest(plans: Sequence[Plan]) -> Plan:
    """The plan with the least time for a token, and of equal ones the one that takes the least."""
    return min(plans, key=_seconds_of_a_token)


def _seconds_of_a_token(one: Plan) -> tuple[float, int]:
    cost, chip = one.measured_cost, one.chip
    if cost is None or chip is None:
        return math.inf, one.takes
    return cost.step(chip) / one.tokens, one.takes


def _variants(config: ExperimentConfig, topology: Topology, batches: Sequence[int]) -> Iterator[ExperimentConfig | None]:
    length = config.task.shapes(config.train.batch_size).tokens.shape[1]
    slices = [config.train.accumulation * times for times in (1, 4, 16, 64)]
    for mesh in _meshes(topology.size, split_time=length >= LONG):
        for fsdp, batch, remat, accumulation in itertools.product((False, True), batches, (False, True), slices):
            if fsdp and mesh["data"] == 1:
                continue
            yield _changed(
                config,
                mesh={**mesh, "fsdp": fsdp},
                train={"batch_size": batch, "accumulation": accumulation},
                model={"remat": remat},
            )


def _meshes(size: int, *, split_time: bool) -> Iterator[dict[str, int]]:
    divisors = [number for number in range(1, size + 1) if size % number == 0]
    for sequence, heads, neurons in itertools.product(divisors if split_time else [1], divisors, divisors):
        if size % (sequence * heads * neurons) == 0:
            yield {"data": size // (sequence * heads * neurons), "sequence": sequence, "heads": heads, "neurons": neurons}


def _changed(config: ExperimentConfig, **parts: Mapping[str, Any]) -> ExperimentConfig | None:
    """The experiment with other values, or None where they do not go together."""
    try:
        values: dict[str, Any] = {name: change(getattr(config, name), **fields) for name, fields in parts.items()}
        return dataclasses.replace(config, **values)
    except ConfigError:
        return None


def remedies(one: Plan) -> list[tuple[str, Plan]]:
    """What to change of a plan that does not fit: flags, and the plan that fits by declarations with them.

    Recomputation, weights in parts, and whole heads on more of the chips, each with as few slices of the batch as do; at most three, those
    that take the least time first.
    """
    chip, mesh = one.chip, one.config.mesh
    if chip is None:
        return []
    # What the compiler refuses though it was declared to fit wants as much more room as that.
    room = max(1.0, one.takes / one.needs.total)
    splits: list[dict[str, Any]] = [{}, {"fsdp": True}]
    for heads in (ways for ways in range(2, mesh.data + 1) if mesh.data % ways == 0):
        data = mesh.data // heads
        splits.append({"data": data, "heads": mesh.heads * heads, "fsdp": data > 1})
    found: list[tuple[str, Plan]] = []
    for remat, split in itertools.product(sorted({one.config.model.remat, True}), splits):
        for times in (2**power for power in range(11)):
            slices = one.config.train.accumulation * times
            parts: dict[str, dict[str, Any]] = {"model": {"remat": remat}, "mesh": split, "train": {"accumulation": slices}}
            flags = _flags(one.config, parts)
            changed = _changed(one.config, **parts) if flags else None
            if changed is None:
                continue
            other = plan(changed, one.topology)
            if other.needs.total * room <= chip.memory:
                found.append((flags, other))
                break
    return sorted(found, key=lambda pair: _seconds_of_a_token(pair[1]))[:3]


def _flags(config: ExperimentConfig, parts: Mapping[str, Mapping[str, Any]]) -> str:
    """What changes a configuration so, on a command line."""
    changed = (
        f"--config.{part}.{name}={value}"
        for part, fields in parts.items()
        for name, value in fields.items()
        if value != getattr(getattr(config, part), name)
    )
    return " ".join(changed)


def describe_mesh(mesh: MeshConfig) -> str:
    """As ``--mesh`` has it."""
    names = [f"{name}:{length}" for name, length in mesh.shape.items() if length > 1]
    return ",".join([*names, *(["fsdp"] if mesh.fsdp else [])]) or "one device"


def describe_save(one: Plan, storage: float) -> str:
    """How long a save takes at so many GB a second, and what that means when a machine is taken away."""
    seconds, every = one.saved / (storage * 1e9), one.config.train.checkpoint_every
    text = f"a save: {gigabytes(one.saved)} from a machine, {seconds:,.1f} s at --storage={storage:g} GB a second, "
    if seconds <= NOTICE:
        return f"{text}within a notice of {NOTICE:.0f} s"
    lost = f"up to train.checkpoint_every={every} steps"
    if one.measured_cost is not None and one.chip is not None:
        lost += f" ({every * one.measured_cost.step(one.chip):,.0f} s)"
    split = "" if one.config.mesh.fsdp or one.config.mesh.data == 1 else ", which fsdp in the mesh shortens,"
    return f"{text}longer than a notice of {NOTICE:.0f} s{split}: a machine that is taken away costs {lost}"


def gigabytes(size: int) -> str:
    """As tables have it."""
    return f"{size / 1e9:.3f} GB" if size < 1e9 else f"{size / 1e9:.2f} GB"
