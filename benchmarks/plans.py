"""Plans of the published size and of the presets, through the compilers of the chips, beside what declarations say.

    python benchmarks/plans.py --json benchmarks/results/plans.json --tpu PYTHON --gpu PYTHON

Each PYTHON is the interpreter of an environment that has that compiler (``make compile-tpu`` and ``make compile-gpu`` make them). Claims:

    checked    three sizes on three meshes of four v5p, two layers each: declared arguments within 2 % and temporaries within 25 % of the
               compiler's. Neither is computed from the other: declarations list arrays (``bdh_jax.models.bdh``), compilers make programs
    plans      the published size and the presets on v5e:2x2, v5p:8x8x8 and an H100
    refused    what does not fit by declarations the compiler refuses too
    heads      what a layer sends at D 1,024 and 16 heads on 8 ways of heads; ``--old`` names a checkout in which 8 ways split the neurons
               within heads, which sends at least 8 times as much

A row that is in the file already is not compiled again. An hour on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bdh_jax.commands._plans import compile_step, plan, with_mesh
from bdh_jax.config import ConfigError
from bdh_jax.config.convert import change
from bdh_jax.experiment import ExperimentConfig, load_experiment
from bdh_jax.parallel.chips import environment, read_topology

ARGUMENTS, TEMPORARIES, FEWER = 0.02, 0.25, 8.0
SIZES = {"text:official": 32, "scale:100m": 16, "scale:1b": 8}
MESHES = ("data:4", "data:2,heads:2,fsdp", "heads:4")
console = Console() if sys.stdout.isatty() else Console(width=132)

CHECKED = [
    {"experiment": name, "topology": "v5p:2x2x1", "mesh": mesh, "batch_size": batch, "layers": 2}
    for name, batch in SIZES.items()
    for mesh in MESHES
]
PLANS = [
    {"experiment": "text:official", "topology": "v5e:2x2", "mesh": "data:4", "batch_size": 32},
    {"experiment": "text:official", "topology": "h100:1", "mesh": "data:1", "batch_size": 32},
    {"experiment": "scale:100m", "topology": "v5e:2x2", "mesh": "data:4", "batch_size": 16},
    {"experiment": "scale:100m", "topology": "h100:1", "mesh": "data:1", "batch_size": 16},
    {"experiment": "scale:1b", "topology": "v5p:8x8x8", "mesh": "data:64,heads:8", "batch_size": 256},
    {"experiment": "text:official", "topology": "v5p:8x8x8", "mesh": "data:512", "batch_size": 4096},
    {"experiment": "scale:10b", "topology": "v5p:8x8x8", "mesh": "data:16,heads:32,fsdp", "batch_size": 128},
    {"experiment": "scale:1b", "topology": "h100:8", "mesh": "heads:8", "batch_size": 4},
]
REFUSED = [
    {"experiment": "scale:100m", "topology": "v5e:2x2", "mesh": "data:4", "batch_size": 256, "layers": 1},
    {"experiment": "scale:1b", "topology": "v5e:2x2", "mesh": "data:4,fsdp", "batch_size": 4, "layers": 1},
]
WIDE = {"d_model": 1024, "n_head": 16, "n_neurons": 8192, "dropout": 0.0, "remat": False}
"""Of ``heads``: what a layer sends does not depend on its neurons, of which there are few, so that it compiles in a minute."""
WIDE_BATCH, WIDE_LENGTH = 8, 512


def experiment(row: dict[str, Any]) -> ExperimentConfig:
    """The experiment of a row, on its mesh."""
    config = load_experiment(row["experiment"])
    config = change(config, "train", batch_size=row["batch_size"])
    if "layers" in row:
        config = change(config, "model", n_layer=row["layers"])
    return with_mesh(config, read_topology(row["topology"]), row["mesh"])


def compiled(row: dict[str, Any], pythons: dict[str, Path | None]) -> dict[str, Any]:
    """The row with what declarations and the compiler say."""
    topology = read_topology(row["topology"])
    return beside(row, compile_step(plan(experiment(row), topology), pythons[topology.platform]))


def beside(row: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """The row with what declarations say now, and what a compiler said."""
    topology = read_topology(row["topology"])
    declared = plan(experiment(row), topology)
    found = plan(declared.config, topology, answer)
    layers = f", {row['layers']} layers" if "layers" in row else ""
    name = f"{row['experiment']} on {row['topology']}, {row['mesh']}, {row['batch_size']} windows{layers}"
    return {"name": name, **found.to_dict(), "declared_fits": declared.fits, **row}


def heads(pythons: dict[str, Path | None], old: Path | None) -> dict[str, Any]:
    """Bytes that a layer sends over 8 ways of heads: those of two layers less those of one."""
    topology = read_topology("v5e:2x4")
    found: dict[str, Any] = {"topology": str(topology), "batch": WIDE_BATCH, "length": WIDE_LENGTH, **WIDE}
    sides = {"heads": ("heads", Path(__file__).resolve().parents[1])}
    if old is not None:
        sides["before"] = ("neurons", old)
    for side, (axis, root) in sides.items():
        request = {"root": str(root), "axis": axis, "model": WIDE, "batch": WIDE_BATCH, "length": WIDE_LENGTH}
        sent = []
        for layers in (1, 2):
            variables = {**os.environ, **environment(topology), "PYTHONPATH": str(root)}
            command = [str(pythons["tpu"] or sys.executable), str(Path(__file__).with_name("plans_layer.py"))]
            ended = subprocess.run(
                command,
                input=json.dumps({**request, "layers": layers, "topology": "v5e:2x4"}),
                capture_output=True,
                text=True,
                env=variables,
                check=False,
            )
            if ended.returncode:
                raise SystemExit(f"{side}, {layers} layers: {ended.stderr[-1000:]}")
            sent.append(json.loads(ended.stdout.splitlines()[-1]))
        by_shape = {shape: count - sent[0].get(shape, 0) for shape, count in sent[1].items()}
        found[side] = {shape: count for shape, count in by_shape.items() if count}
        found[f"{side}_bytes"] = sum(int(shape.split()[0]) * count for shape, count in found[side].items())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="the file of results; rows that are there stay")
    parser.add_argument("--tpu", type=Path, help="interpreter of an environment with libtpu")
    parser.add_argument("--gpu", type=Path, help="interpreter of an environment with CUDA's compiler")
    parser.add_argument("--old", type=Path, help="a checkout in which 8 ways split the neurons within heads")
    parser.add_argument("--parts", default="checked,heads,plans,refused")
    parser.add_argument("--only", default="", help="rows whose name has this text")
    options = parser.parse_args()
    pythons: dict[str, Path | None] = {"tpu": options.tpu, "gpu": options.gpu, "cpu": None}
    found = json.loads(options.json.read_text()) if options.json.exists() else {}
    rows = {"checked": CHECKED, "plans": PLANS, "refused": REFUSED}
    for part, listed in rows.items():  # declarations may have changed since
        found[part] = [
            beside(row, one["compiled"])
            for row in listed
            for one in found.get(part, [])
            if all(one.get(key) == value for key, value in row.items())
        ]
    for part in options.parts.split(","):
        if part == "heads":
            if part not in found or (options.old is not None and "before" not in found[part]):
                found[part] = heads(pythons, options.old)
                options.json.write_text(json.dumps(found, indent=1) + "\n")
            continue
        for row in rows[part]:
            done = [one for one in found.get(part, []) if all(one.get(key) == value for key, value in row.items())]
            if done or options.only not in f"{row['experiment']} {row['topology']} {row['mesh']}":
                continue
            try:
                one = compiled(row, pythons)
            except ConfigError as error:
                console.print(f"{row}: {error}", markup=False)
                continue
            found.setdefault(part, []).append(one)
            options.json.write_text(json.dumps(found, indent=1) + "\n")
            console.print(f"{part}: {one['name']} ({one['compiled']['seconds']:.0f} s)", markup=False)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    return report(found)


def report(found: dict[str, Any]) -> int:
    """Print the tables. Returns 1 if a claim does not hold."""
    ok = True
    table = Table(title="GB on a chip: declared, and as compiled")
    for name in ("plan", "arguments", "", "temporaries", "", "÷"):
        table.add_column(name, justify="left" if name == "plan" else "right")
    for part in ("checked", "plans"):
        for row in found.get(part, []):
            declared, made = row["declared"], row["compiled"]
            if "refused" in made:
                continue
            numbers = [declared["arguments"], made["arguments"], declared["temporaries"], made["temporaries"]]
            share = numbers[2] / numbers[3]
            table.add_row(row["name"], *(f"{number / 1e9:.3f}" for number in numbers), f"{share:.2f}")
            if part == "checked":
                ok &= abs(numbers[0] / numbers[1] - 1) <= ARGUMENTS and abs(share - 1) <= TEMPORARIES
    console.print(table)
    for row in found.get("refused", []):
        refused = row["compiled"].get("refused", "")
        console.print(
            f"{row['name']}: declared to fit: {row['declared_fits']}; the compiler: {refused[:200] or 'takes it'}",
            markup=False,
        )
        ok &= bool(refused) and row["declared_fits"] is False
    if "before_bytes" in found.get("heads", {}):
        fewer = found["heads"]["before_bytes"] / found["heads"]["heads_bytes"]
        console.print(f"a layer sends {fewer:.1f} times fewer bytes than with neurons split within heads")
        ok &= fewer >= FEWER
    console.print("all claims hold" if ok else "a claim does not hold")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
