"""The graph of neurons and synapses that tell texts apart, of text models over three seeds: the tables of docs/results/graph.md.

    python benchmarks/graph_table.py --workdir=runs/graph --json benchmarks/results/graph_cpu.json

Trains ``configs/text.py`` over the seeds, unless it is there (four minutes a seed on a core), then asks what the report's sections
"graph" and "synapses" ask: about the graph; about the sets of texts that the library ships, which are none of what the model was trained
on; and about lines of the validation text that address somebody as thou, against lines that say you, which such a model should know.
About five minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np

from bdh_jax.analysis.graph import DENSITY, DIRECTIONS
from bdh_jax.analysis.report import graph, synapses
from bdh_jax.analysis.report.base import Finding, Subject
from bdh_jax.config.seeds import key_of
from bdh_jax.data.load import load_text
from bdh_jax.experiment import load_as, read_experiment
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.types import Slow

THOU = "thou and you"
PARTS = ("graph", "currencies and politics", THOU)
LINES = 40
"""Of each set of lines of the validation text."""
ADDRESSES = {
    "thou": re.compile(r"\b(thou|thee|thy|thine)\b", re.IGNORECASE),
    "you": re.compile(r"\b(you|your|yours)\b", re.IGNORECASE),
}


def main() -> None:
    """Train what is missing, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs, seed<k> each")
    parser.add_argument("--path", type=Path, help="the text to train on; tiny Shakespeare unless it is given")
    parser.add_argument("--seeds", default="0,1,2", help="training seeds")
    parser.add_argument("--budget", type=float, default=1.0, help="scales shuffles and what is searched")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is asked; all by default")
    parser.add_argument("--json", type=Path, help="write all numbers there; what it has of other parts is kept")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not (options.workdir / "results.json").exists():
        train(options)
    subject, lines = subject_of(options.workdir, seeds, options.budget)
    done = json.loads(options.json.read_text(encoding="utf-8"))["findings"] if options.json and options.json.exists() else {}
    for part in options.parts:
        own = lines if part == THOU else None
        section = graph.SECTION if part == "graph" else synapses.SECTION
        findings = section.find(dataclasses.replace(subject, own=own))
        print(f"\n## {part}\n")
        for finding in findings:
            tell(finding)
        # After every part: the command can be interrupted, and given again for the others.
        done[part] = {each.name: _plain(each) for each in findings}
        measure.write_json(options.json, {"seeds": options.seeds, "budget": options.budget, "findings": done})


def train(options: argparse.Namespace) -> None:
    """Train the models of the table."""
    command = [sys.executable, "-m", "bdh_jax", "train", "text", f"--workdir={options.workdir}"]
    command += [f"--config.seeds={options.seeds}"] + [f"--config.data.path={options.path}"] * bool(options.path)
    print("$", " ".join(["python", *command[1:]]), flush=True)
    status = subprocess.run(command).returncode
    if status:
        sys.exit(f"error: training ended with exit status {status}; what it printed above says why")


def subject_of(workdir: Path, seeds: Sequence[int], budget: float) -> tuple[Subject, Mapping[str, Sequence[str]]]:
    """The models, and sets of lines of their validation text."""
    folders = {seed: workdir / f"seed{seed}" if len(seeds) > 1 else workdir for seed in seeds}
    loaded = {seed: load_as(BDHConfig, folder) for seed, folder in folders.items()}
    config = next(iter(loaded.values()))[0]
    data = load_text(read_experiment(next(iter(folders.values()))).data)

    @functools.cache
    def untrained(seed: int) -> Slow:
        # As a run begins: the other half of its key is for its steps.
        return config.build().init_slow(jax.random.split(key_of(seed))[0])

    def encode(text: str) -> np.ndarray:
        return np.asarray(data.tokenizer.encode(text.encode()), np.int32)

    length = 128
    validation = np.asarray(data.validation.tokens)
    windows = validation[: len(validation) // length * length].reshape(-1, length)[:64].astype(np.int32)

    def decode(ids: Sequence[int]) -> str:
        return data.tokenizer.decode(ids).decode("utf-8", "replace")

    subject = Subject(
        name="text",
        config=config,
        seeds={seed: slow for seed, (_, slow) in loaded.items()},
        untrained=untrained,
        tokens=windows,
        valid=np.ones(windows.shape, bool),
        encode=encode,
        decode=decode,
        budget=budget,
    )
    return subject, addressed(decode(validation.tolist()))


def addressed(text: str) -> dict[str, list[str]]:
    """The first lines of 30 to 60 characters with a word of one kind and none of the other."""
    found: dict[str, list[str]] = {name: [] for name in ADDRESSES}
    for line in dict.fromkeys(text.splitlines()):
        kinds = [name for name, words in ADDRESSES.items() if words.search(line)]
        if 30 <= len(line) <= 60 and len(kinds) == 1 and len(found[kinds[0]]) < LINES:
            found[kinds[0]].append(line)
    return found


def tell(finding: Finding) -> None:
    """Print a finding, with its numbers as a table where that is short."""
    print(f"**{finding.title}.** {finding.says}\n\nNull: {finding.null}\n")
    rows = list(finding.rows)
    if finding.name == "modularity":
        rows = [row for row in rows if row["density"] == DENSITY]
    if finding.name == "tails":
        rows = [row for row in rows if row["of"] in {f"{direction}-degree" for direction in DIRECTIONS}]
    if len(rows) <= 64:
        cells = [["" if value is None else str(value) for value in row.values()] for row in rows]
        print(measure.markdown(list(rows[0]), cells), end="\n\n")


def _plain(finding: Finding) -> dict[str, Any]:
    """Its numbers; what they say is said when they are printed."""
    return {name: json.loads(json.dumps(getattr(finding, name))) for name in ("p_value", "effect", "rows")}


if __name__ == "__main__":
    main()
