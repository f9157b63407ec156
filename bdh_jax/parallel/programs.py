"""What a compiled program sends between devices, read off its text: collectives by kind and by the axes of the mesh that they cross."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "f16": 16}
_INSTRUCTION = re.compile(rf"= (.*?) (ragged-all-to-all|{'|'.join(KINDS)})(-start)?\((.*)")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_CALLED = re.compile(
    r"(body|condition|to_apply|calls|called_computations|branch_computations)=(%?[\w.\-]+|\{%?[\w.\-]+(?:, %?[\w.\-]+)*\})"
)


class Collective(NamedTuple):
    """A collective of a compiled program.

    Attributes:
      kind: of ``KINDS``.
      axes: names of the mesh axes that it crosses; ("?",) where its groups are no axes of the mesh.
      group: devices that take part together.
      size: bytes of the whole: what is summed or gathered, on one device.
      times: how often it runs in one call of the program.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    size: int
    times: int = 1

    @property
    def sent(self) -> float:
        """Bytes that a device sends, all times together, as rings do it: a sum is scattered and gathered."""
        part = (self.group - 1) / self.group
        if self.kind in ("collective-permute", "collective-broadcast"):
            part = 1.0
        return self.times * self.size * part * (2 if self.kind == "all-reduce" else 1)


def collectives(text: str, mesh: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, of one device. Those between groups of one device move nothing and are left out.

    Args:
      text: ``compiled.as_text()``.
      mesh: name of each axis → its length, in the order of the mesh that the program was compiled for.
    """
    found = []
    for name, lines, times in _computations(text):
        for line in lines:
            match = _INSTRUCTION.search(line)
            if match is None:
                continue
            results, kind, start, rest = match.groups()
            axes, group = _crossed(rest, mesh)
            if group == 1:
                continue
            size = _size(results, operands_too=bool(start) and kind in ("all-gather", "collective-permute"))
            if kind == "reduce-scatter":
                size *= group
            elif kind == "all-reduce" and "all-reduce-scatter" in name:
                kind = "reduce-scatter"  # a TPU's, whose sum never leaves it whole
            found.append(Collective(kind.removeprefix("ragged-"), axes, group, size, times))
    return found


def total(found: Sequence[Collective]) -> dict[tuple[str, tuple[str, ...]], float]:
    """(kind, axes) → bytes that a device sends."""
    sums: dict[tuple[str, tuple[str, ...]], float] = {}
    for one in found:
        key = one.kind, one.axes
        sums[key] = sums.get(key, 0.0) + one.sent
    return sums


def _computations(text: str) -> list[tuple[str, list[str], int]]:
    """Name, lines and number of runs of every computation that runs. Of a loop whose length the compiler does not say one round counts."""
    bodies: dict[str, list[str]] = {}
    entry = current = ""
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened is not None:
            current = opened[2]
            bodies[current] = []
            entry = current if opened[1] else entry
        elif line == "}":
            current = ""
        elif current:
            bodies[current].append(line)
    if not entry:  # a piece of a program
        return [("", text.splitlines(), 1)]
    calls: dict[str, list[tuple[str, int]]] = {name: [] for name in bodies}
    for name, lines in bodies.items():
        for line in lines:
            rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', line) if " while(" in line else None
            for how, named in _CALLED.findall(line):
                times = int(rounds[1]) if rounds is not None and how in ("body", "condition") else 1
                calls[name] += [(one.strip().lstrip("%"), times) for one in named.strip("{}").split(",")]
    runs = dict.fromkeys(bodies, 0)

    def run(name: str, times: int) -> None:
        runs[name] += times
        for called, rounds in calls[name]:
            if called in runs:
                run(called, times * rounds)

    run(entry, 1)
    return [(name, lines, runs[name]) for name, lines in bodies.items() if runs[name]]


def _size(results: str, *, operands_too: bool) -> int:
    """Bytes of all arrays of a result; of an asynchronous one that names its operands too, of the results alone."""
    sizes = []
    for kind, dims in re.findall(r"\b(pred|bf16|[suf]\d+\w*|c\d+)\[([\d,]*)\]", results):
        bits = _BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
        sizes.append(math.prod(int(n) for n in dims.split(",") if n) * bits // 8)
    if operands_too:
        arrays = [size for size in sizes if size > 4] or sizes  # contexts are scalars
        return sum(arrays[len(arrays) // 2 :])
    return sum(sizes)


def _crossed(rest: str, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], int]:
    """The axes that a collective's groups go over, and how many devices a group has."""
    group = _group(rest, math.prod(mesh.values()))
    places = np.array(np.unravel_index(group, tuple(mesh.values())))
    differ = [number for number in range(len(places)) if len(set(places[number])) > 1]
    axes = tuple(list(mesh)[number] for number in differ)
    lengths = [list(mesh.values())[number] for number in differ]
    if "source_target_pairs" in rest:
        return axes, math.prod(lengths)
    return (axes if math.prod(lengths) == len(group) else ("?",)), len(group)


def _group(rest: str, devices: int) -> list[int]:
    """The devices of a collective's first group, or a source and its target."""
    pairs = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    if pairs is not None:
        return [int(pairs[1]), int(pairs[2])]
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", rest)
    if listed is not None:
        return [int(number) for number in listed[1].split(",")]
    tiled = re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    if tiled is not None:
        return _counted(tiled[3], tiled[4]).reshape(int(tiled[1]), int(tiled[2]))[0].tolist()
    named = re.search(r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", rest)
    if named is not None:  # newer versions: a mesh, whose names are the compiler's own, and axes of it
        lengths = {axis: int(length) for axis, length in re.findall(r"'(\w+)'=(\d+)", named[1])}
        numbers = np.arange(math.prod(lengths.values())) if named[2] is None else _counted(named[2], named[3])
        over = re.findall(r"'(\w+)'", named[4])
        first = tuple(slice(None) if axis in over else 0 for axis in lengths)
        return numbers.reshape(tuple(lengths.values()))[first].reshape(-1).tolist()
    return list(range(devices))  # {} is everybody


def _counted(dims: str, order: str | None) -> np.ndarray:
    """0, 1, … in an array of these lengths, whose axes are then put in another order."""
    lengths = [int(number) for number in dims.split(",")]
    numbers = np.arange(math.prod(lengths)).reshape(lengths)
    return numbers if order is None else numbers.transpose([int(axis) for axis in order.split(",")])
