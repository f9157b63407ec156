"""Fill in the tables of docs/performance.md from benchmarks/results.

    python benchmarks/performance.py

Each table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is between is replaced, the text around it stays.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
COMPILED = ("compiled_tpu", "compiled_gpu")


def compiled() -> str:
    """Megabytes of temporaries on every chip, and what a TPU's compiler counts, of everything but odd sizes."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    chips: list[str] = []
    for name in COMPILED:
        for entry in _read(name)["compiled"]:
            if entry["chip"] not in chips:
                chips.append(entry["chip"])
            if not entry["size"].startswith("odd"):
                found.setdefault((entry["program"], entry["size"]), {})[entry["chip"]] = entry
    rows = []
    for (program, size), by_chip in found.items():
        any_chip = next(iter(by_chip.values()))
        temporaries = [f"{by_chip[chip]['temp'] / 1e6:,.1f}" if chip in by_chip else "" for chip in chips]
        counted = by_chip.get("v5e", {})
        costs = [f"{counted[key] / scale:,.1f}" if key in counted else "" for key, scale in (("flops", 1e9), ("bytes", 1e6))]
        rows.append([program, size, f"{any_chip['argument'] / 1e6:,.1f}", *temporaries, *costs])
    versions = {package: version for name in COMPILED for package, version in _read(name)["versions"].items()}
    head = ["program", "size", "arguments", *chips, "GFLOP (v5e)", "MB moved (v5e)"]
    said = ", ".join(f"{package} {version}" for package, version in versions.items())
    return (
        _table(head, rows) + f"\n\nMegabytes (10⁶ bytes) of arguments, and of temporaries by chip. Compiled with {said}.\n"
    )


def row_add() -> str:
    """Consolidation of a tenth of the rows."""
    found = _read("row_add_cpu")
    dense = found["results"]["dense"]["bytes"]
    rows = []
    for name, entry in found["results"].items():
        time, faster = entry["seconds"], entry["dense_over_this"]
        rows.append(
            [
                name,
                f"{time['median'] * 1e3:.2f} ({time['low'] * 1e3:.2f}–{time['high'] * 1e3:.2f})",
                f"{faster['median']:.2f} ({faster['low']:.2f}–{faster['high']:.2f})",
                f"{entry['bytes'] / 1e6:.1f}",
                f"{entry['bytes'] / dense:.0%}",
                "" if entry["claim"] is None else f"≥ {entry['claim']:g}",
            ]
        )
    return _table(["form", "ms", "dense ÷ this", "MB that move", "of dense", "claim"], rows) + "\n"


def token_step() -> str:
    """One token with 2 % and 5 % active rows, and beside a GPT."""
    found = _read("token_step_cpu")["results"]
    tokens, sides = 32, ("by hand", "default", "older")
    rows = []
    for name, entry in found["table"].items():
        ratios = [_ratio(entry["ratios"][side]) for side in sides]
        claims = ", ".join(f"{side} ≥ {limit:g}" for side, limit in entry["claims"].items())
        rows.append(
            [
                name,
                f"{entry['overlap']:.0%}",
                _spread([1e3 * seconds / tokens for seconds in entry["seconds"]["token step"]]),
                *ratios,
                f"{entry['state_over_attention_and_memory']:.3f}",
                claims,
            ]
        )
    head = ["active", "overlap", "ms a token", "by hand ÷", "default ÷", "older ÷", "state", "claims"]
    beside = [[name, _spread([1e3 * s / tokens for s in seconds])] for name, seconds in found["gpt"]["seconds"].items()]
    sizes = " and ".join(f"{size:.1f} M" for size in found["gpt"]["parameters_in_millions"])
    official, trained = found["official"], _read("token_step_trained_cpu")["results"]["trained"]
    return (
        f"{_table(head, rows)}\n\nThe official code, which reads its whole context for every token, took {_ratio(official['ratio'])} times as "
        f"long after {official['context']} tokens. A model of this size that was trained for 100 steps, at its own activity, against the older "
        f"commit: {_ratio(trained['ratios']['older'])}; against this library without slots: {_ratio(trained['ratios']['default'])}. Beside a GPT with a cache of keys and values, {sizes} parameters:\n\n"
        f"{_table(['after', 'ms a token'], beside)}\n"
    )


def write_back() -> str:
    """Training and forward with write-back over without."""
    rows = []
    for name, entry in _read("write_back_cpu")["results"].items():
        times = [f"{entry['seconds'][side]['median'] * 1e3:,.0f}" for side in ("without", "with")]
        rows.append([name, *times, f"{entry['counted_ratio']:.3f}", _ratio(entry["ratio"], 3), f"≤ {entry['limit']:.3f}"])
    return _table(["", "ms without", "ms with", "counted", "with ÷ without", "claim"], rows) + "\n"


def hot_paths() -> str:
    """Every path beside its floor."""
    found = _read("hot_paths_cpu")
    rows = []
    for name, entry in found["paths"].items():
        must = f"{entry['flops'] / 1e9:,.0f} GFLOP" if entry["flops"] else f"{entry['units'] * entry['bytes'] / 1e6:,.0f} MB"
        rows.append(
            [
                name,
                must,
                f"{entry['floor_milliseconds']:,.0f}",
                f"{entry['milliseconds']['median']:,.0f} ({entry['milliseconds']['low']:,.0f}–{entry['milliseconds']['high']:,.0f})",
                f"{entry['share']:.0%}",
            ]
        )
    rate = found["rates"]
    return (
        _table(["path", "must", "floor, ms", "ms", "reached"], rows)
        + f"\n\nMeasured in the same run: {rate['flops_per_second'] / 1e9:,.0f} GFLOP/s of a matrix product of the decoder's shape, "
        f"{rate['bytes_per_second'] / 1e9:.1f} GB/s of memory.\n"
    )


def sparsity() -> str:
    """What a sparser code costs and saves."""
    found = _read("sparsity_cpu")
    rows = []
    for entry in found["rows"]:
        scores, share, time = entry["scores"], entry["share"], entry["milliseconds"]
        rows.append(
            [
                {"nback": "n-back, credit ÷ ceiling", "text": "text, bits per byte"}[entry["task"]],
                entry["row"],
                f"{statistics.mean(scores):.4f} ± {statistics.stdev(scores):.4f}",
                f"{share['code']:.1%}",
                f"{share['gated']:.1%}",
                f"{time['median']:.1f} ({time['low']:.1f}–{time['high']:.1f})",
            ]
        )
    head = ["scored", "code", f"seeds {found['seeds']}", "active", "gated, active", "ms a token"]
    return _table(head, rows) + "\n"


def first_step() -> str:
    """What a user waits for."""
    rows = []
    for name, entry in _read("first_step_cpu")["results"].items():
        starts = [_spread(entry["seconds"][start]) for start in ("first", "second", "no cache")]
        faster = entry["first_over_second"]
        rows.append([name, *starts, f"{faster['median']:.2f} ({faster['low']:.2f}–{faster['high']:.2f})"])
    return _table(["configuration", "first, s", "second, s", "no cache, s", "first ÷ second"], rows) + "\n"


def _ratio(ratio: dict[str, float], digits: int = 2) -> str:
    return f"{ratio['median']:.{digits}f} ({ratio['low']:.{digits}f}–{ratio['high']:.{digits}f})"


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"


TABLES: dict[str, Callable[[], str]] = {
    "compiled": compiled,
    "hot_paths": hot_paths,
    "write_back": write_back,
    "token_step": token_step,
    "row_add": row_add,
    "sparsity": sparsity,
    "first_step": first_step,
}


def filled(text: str) -> str:
    """``text`` with every table as the results have it.

    Raises:
      ValueError: for a table without its place.
    """
    for name, table in TABLES.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"docs/performance.md has no place for {name}: <!-- {name} --> and <!-- end of {name} -->")
        found = f"\n{table()}\n"
        text = place.sub(lambda _, found=found: found, text)
    return text


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
