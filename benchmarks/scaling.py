"""What a training takes on 1 … 4,096 chips, by declarations; and the tables of docs/scaling.md.

    python benchmarks/scaling.py --search     the best plan of each size on each number of chips, into results/scaling.json: a minute
    python benchmarks/scaling.py              fills in the tables of docs/scaling.md from results/

Each table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is between is replaced, the text around it stays.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"
SIZES = ("100m", "1b", "10b")
CHIPS = {1: "1x1x1", 8: "2x2x2", 64: "4x4x4", 512: "8x8x8", 4096: "16x16x16"}
PRESETS = ("text:official", "scale:100m", "scale:1b", "scale:10b")
TOPOLOGIES = ("v5e:2x2", "h100:8", "v5p:8x8x8")
LEAST = 256
"""Windows a step; where there are more chips, one for each."""


def search() -> dict[str, list[dict[str, Any]]]:
    """The best plan of every size on every number of chips; and of the published size and the presets, on chips of every kind."""
    from bdh_jax.commands import _plans as plans
    from bdh_jax.experiment import load_experiment
    from bdh_jax.parallel.chips import read_topology

    sizes = []
    for size in SIZES:
        for chips, shape in CHIPS.items():
            topology, config = read_topology(f"v5p:{shape}"), load_experiment(f"scale:{size}")
            row = _best(f"scale:{size}", topology, max(LEAST, chips))
            alone = change_batch(config, max(LEAST, chips))
            alone = plans.plan(plans.with_mesh(alone, topology, f"data:{chips}"), topology)
            sizes.append({"size": size, **row, "data_alone": alone.to_dict()})
    presets = [
        {"experiment": name, **_best(name, read_topology(text), max(batch, read_topology(text).size))}
        for name in PRESETS
        for text in TOPOLOGIES
        for batch in [load_experiment(name).train.batch_size]
    ]
    return {"scaling": sizes, "presets": presets}


def change_batch(config: Any, batch: int) -> Any:
    """The experiment with so many windows a step."""
    from bdh_jax.config.convert import change

    return change(config, "train", batch_size=batch)


def _best(name: str, topology: Any, batch: int) -> dict[str, Any]:
    """The best plan of an experiment; where none fits, the one that comes nearest."""
    from bdh_jax.commands import _plans as plans
    from bdh_jax.experiment import load_experiment

    found = plans.candidates(change_batch(load_experiment(name), batch), topology, batches=(batch,))
    fitting = [one for one in found if one.fits]
    best = plans.fastest(fitting) if fitting else min(found, key=lambda one: one.takes)
    print(name, topology, plans.describe_mesh(best.config.mesh), best.fits, flush=True)
    return {"fitting": len(fitting), **best.to_dict()}


def scaling() -> str:
    """The best plan of each size on each number of chips."""
    rows = []
    for row in _read("scaling")["scaling"]:
        mesh, settings = _settings(row)
        if row["fits"]:
            seconds = row["seconds"]
            figures = [
                f"{row['takes'] / 1e9:.1f}",
                f"{row['step_seconds'] * 1e3:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                f"{row['share_of_peak']:.0%}",
                f"{seconds['network'] / row['step_seconds']:.1%}",
            ]
        else:
            figures = [f"{row['takes'] / 1e9:.1f}: too much", "", "", "", ""]
        alone = row["data_alone"]
        figures.append(f"{alone['takes'] / 1e9:.1f}" + ("" if alone["fits"] else ", too much"))
        rows.append([row["size"], f"{row['chips']:,}", mesh, settings, "yes" if row["remat"] else "no", *figures])
    head = ["size", "chips", "mesh", "windows a step", "recomputing", "GB a chip", "ms a step", "tokens a second", "of peak"]
    return _table([*head, "of it network", "GB with `data` alone"], rows, left=3)


def _settings(row: dict[str, Any]) -> tuple[str, str]:
    """Mesh and batch of a plan, for people."""
    mesh = " × ".join(f"{name} {length}" for name, length in row["mesh"].items()) or "one"
    mesh += ", fsdp" if row["fsdp"] else ""
    return mesh, f"{row['batch_size']:,}" + (f" in {row['accumulation']}" if row["accumulation"] > 1 else "")


def presets() -> str:
    """The best plan of the published size and of each preset, on chips of every kind."""
    rows = []
    for row in _read("scaling")["presets"]:
        mesh, settings = _settings(row)
        figures = [f"{row['takes'] / 1e9:.1f} of {row['memory'] / 1e9:.1f}"]
        if row["fits"]:
            figures += [f"{row['step_seconds'] * 1e3:,.0f}", f"{row['share_of_peak']:.0%}", row["bound"]]
        else:
            figures += ["does not fit", "", ""]
        rows.append([row["experiment"], row["topology"], mesh, settings, "yes" if row["remat"] else "no", *figures])
    head = ["size", "chips", "mesh", "windows a step", "recomputing", "GB a chip", "ms a step", "of peak", "bound by"]
    return _table(head, rows, left=3)


def checked() -> str:
    """Declarations beside the compiler."""
    return _beside(_read("plans").get("checked", []))


def plans() -> str:
    """The published size and the presets, compiled."""
    return _beside([row for row in _read("plans").get("plans", []) if "refused" not in row["compiled"]])


def _beside(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        declared, made = row["declared"], row["compiled"]
        sent = sum(one["bytes"] for one in made["collectives"])
        cells.append(
            [
                row["name"],
                *(f"{side['arguments'] / 1e9:.3f}" for side in (declared, made)),
                *(f"{side['temporaries'] / 1e9:.2f}" for side in (declared, made)),
                f"{declared['temporaries'] / made['temporaries']:.2f}",
                f"{sent / 1e6:,.1f}",
                f"{row['step_seconds'] * 1e3:,.0f}",
                f"{row['share_of_peak']:.0%}",
                row["bound"],
            ]
        )
    head = [
        "plan",
        "arguments, declared",
        "compiled",
        "temporaries, declared",
        "compiled",
        "÷",
        "MB sent",
        "ms",
        "of peak",
        "bound by",
    ]
    return _table(head, cells, left=1)


def refused() -> str:
    """What does not fit, and what the compiler says of it."""
    rows = []
    for row in _read("plans").get("refused", []):
        said = re.search(
            r"HLO temporaries \(([\d.]+\w)\) exceeds available HBM \(([\d.]+\w)\)", row["compiled"].get("refused", "")
        )
        words = (
            "takes it"
            if "refused" not in row["compiled"]
            else f"refuses temporaries of {said[1]}iB in {said[2]}iB"
            if said
            else "refuses it"
        )
        total = (row["declared"]["arguments"] + row["declared"]["temporaries"]) / 1e9
        rows.append([row["name"], f"{total:.1f} of {row['memory'] / 1e9:.1f}", words])
    return _table(["plan", "GB, declared", "the compiler"], rows, left=1)


def heads() -> str:
    """What a layer sends."""
    found = _read("plans")["heads"]
    rows = []
    for side, name in (("heads", "8 ways of heads"), ("before", "8 ways within heads, commit 5c90010")):
        if side in found:
            parts = ", ".join(f"{count} × {int(shape.split()[0]) / 1e6:,.1f}" for shape, count in found[side].items())
            rows.append([name, parts, f"{found[f'{side}_bytes'] / 1e6:,.1f}"])
    return _table(["split", "MB summed over the axis in a layer, forward and backward", "together"], rows, left=2)


def sequence() -> str:
    """Memory of a device by parts of time."""
    found = _read("sequence_axis_cpu")
    rows = [
        [str(row["parts"]), f"{row['arguments'] / 1e6:.1f}", f"{row['temporaries'] / 1e6:,.0f}"] for row in found["memory"]
    ]
    return _table(["parts of time", "MB of arguments", "MB of temporaries"], rows, left=0)


TABLES: dict[str, Callable[[], str]] = {
    "scaling": scaling,
    "presets": presets,
    "checked": checked,
    "plans": plans,
    "refused": refused,
    "heads": heads,
    "sequence": sequence,
}


def filled(text: str) -> str:
    """``text`` with every table as the results have it.

    Raises:
      ValueError: for a table without its place.
    """
    for name, table in TABLES.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"docs/scaling.md has no place for {name}: <!-- {name} --> and <!-- end of {name} -->")
        found = f"\n{table()}\n\n"
        text = place.sub(lambda _, found=found: found, text)
    return text


def _read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: list[str], rows: list[list[str]], left: int) -> str:
    lines = [head, ["---"] * left + ["---:"] * (len(head) - left), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--search", action="store_true", help="search anew for the plans of the first table")
    if parser.parse_args().search:
        found = search()
        (RESULTS / "scaling.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
