"""Tables of docs/results/repeats.md and docs/results/codes.md: activity in repeats, and activations of a BDH beside those of a GPT.

    python -m bdh_jax.main --config=configs/repeats.py --workdir=runs/repeats --config.seeds=0,1,2
    python benchmarks/inside_tables.py --repeats=runs/repeats --json benchmarks/results/repeats_cpu.json

    python -m bdh_jax.main --config=configs/text.py --workdir=runs/text --config.seeds=0,1,2
    python -m bdh_jax.main --config=configs/text.py:gpt --workdir=runs/text_gpt --config.seeds=0,1,2
    python benchmarks/inside_tables.py --text=runs/text --gpt=runs/text_gpt --json benchmarks/results/codes_cpu.json

The numbers are those of the sections "repeats" and "codes" of a report. A minute of one CPU core each; trains nothing. A run that has not come
to its end is asked at its last checkpoint, and its step is written beside its numbers.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import measure
import numpy as np

from bdh_jax.analysis.codes import ASKED, taps
from bdh_jax.analysis.report import codes, repeats
from bdh_jax.analysis.report.base import Subject
from bdh_jax.experiment import load, read_experiment
from bdh_jax.models.base import count_parameters
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.folder import seed_folders
from bdh_jax.tasks.text import Text
from bdh_jax.training.init_from import trained_tokenizer
from bdh_jax.training.step import make_keys

_WINDOWS = 64
_NAMES = {"code": "code", "gated": "gated code", "mlp_out.x": "hidden"}
"""A tap in the tables, which are narrow."""
_MEASURED = ("active, %", "effective, %", "equal", "different")


def subject_of(workdir: Path) -> Subject:
    """The models of a run, and sequences that it was not trained on."""
    folders = seed_folders(workdir) or [workdir]
    experiment = read_experiment(folders[0])
    task = experiment.task.make(seed=experiment.seed, batch_size=experiment.train.batch_size, data=experiment.data)
    if isinstance(task, Text):
        length = task.config.length
        whole = np.asarray(task.validation.tokens)
        starts = np.linspace(0, len(whole) - length, _WINDOWS).astype(int)
        tokens = np.stack([whole[start : start + length] for start in starts]).astype(np.int32)
    else:
        tokens = task.batch(2**31).tokens  # a step that no run comes to
    initialise, mesh = jax.jit(experiment.model.build().init_slow), make_mesh(MeshConfig())
    tokenizer = trained_tokenizer(folders[0])
    return Subject(
        name=workdir.name,
        config=experiment.model,
        seeds={read_experiment(folder).seed: load(folder, "last")[1] for folder in folders},
        untrained=lambda seed: initialise(make_keys(seed, mesh)[0]),
        tokens=tokens,
        valid=np.ones(tokens.shape, bool),
        encode=lambda text: np.asarray(tokenizer.encode(text.encode()), np.int32),
        decode=lambda ids: tokenizer.decode(ids).decode(errors="replace"),
    )


def steps_of(workdir: Path) -> dict[str, int]:
    """Seed → step of its last checkpoint."""
    folders = seed_folders(workdir) or [workdir]
    return {
        str(read_experiment(folder).seed): max(
            int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdecimal()
        )
        for folder in folders
    }


def repeats_table(workdir: Path) -> tuple[list[str], dict[str, Any]]:
    """Markdown, and numbers."""
    by_reading, by_layer = repeats.find(subject_of(workdir))
    lines = [
        "| layer | first reading, % | repeats, % | fall | shuffled repeats | untrained | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for layer in sorted({row["layer"] for row in by_layer.rows}):
        rows = [row for row in by_layer.rows if row["layer"] == layer]
        shares = {
            when: [
                100
                * statistics.fmean(
                    row["share"] for row in by_reading.rows if _is(row, layer, seed) and (row["reading"] > 1) == late
                )
                for seed in {row["seed"] for row in rows}
            ]
            for when, late in (("first", False), ("repeats", True))
        }
        cells = [measure.spread(shares["first"], 1), measure.spread(shares["repeats"], 1)]
        cells += [measure.spread([row[name] for row in rows], 2) for name in ("repeated", "shuffled", "untrained")]
        lines.append(f"| {layer} | {' | '.join(cells)} | {rows[0]['p_value']:.3f} |")
    lines += ["", by_reading.says, by_layer.says]
    return lines, {
        "steps": steps_of(workdir),
        "by_reading": list(by_reading.rows),
        "by_layer": list(by_layer.rows),
        "says": by_reading.says,
    }


def _is(row: Any, layer: int, seed: int) -> bool:
    return row["text"] == "repeated" and row["layer"] == layer and row["seed"] == seed and row["reading"] >= 1


def codes_tables(workdirs: Sequence[Path]) -> tuple[list[str], dict[str, Any]]:
    """Markdown, and numbers: two tables with a row for each kind of activations, trained or not, and layer."""
    heads = (["activations", "layer", *_MEASURED], ["activations", "layer", *ASKED])
    tables = [["| " + " | ".join(head) + " |", "|---" * len(head) + "|"] for head in heads]
    numbers: dict[str, Any] = {"rows": [], "says": []}
    frequent: np.ndarray | None = None
    for workdir in workdirs:
        subject = subject_of(workdir)
        kind = type(subject.config).__name__.removesuffix("Config")
        parameters, seeds = count_parameters(subject.config.build().declared_slow()), sorted(subject.seeds)
        for tap in taps(subject.config):
            for trained in (True, False):
                asked = [codes.ask(subject, tap, seed, trained=trained) for seed in seeds]
                frequent = asked[0].probed.frequent
                name = _NAMES[tap] + ("" if trained else ", untrained")
                for layer in range(subject.config.n_layer):
                    values = _values(asked, layer)
                    cells = [measure.spread(value, 1 if number < 2 else 2) for number, value in enumerate(values.values())]
                    for table, part in zip(tables, (cells[: len(_MEASURED)], cells[len(_MEASURED) :]), strict=True):
                        table.append(f"| {name} | {layer + 1} | {' | '.join(part)} |")
                    numbers["rows"].append(
                        {"model": kind, "activations": name, "layer": layer + 1, "seeds": seeds, "parameters": parameters}
                        | values
                        | {"largest difference of equal tokens": [float(one.equal.difference[layer]) for one in asked]}
                    )
        numbers["says"] += [finding.says for finding in codes.find(subject)]
        numbers[f"steps {kind}"] = steps_of(workdir)
        numbers[f"scores {kind}"] = _scores(workdir)
    if frequent is not None:
        tables[1].append("| most frequent token | | " + " | ".join(f"{share:.2f}" for share in frequent) + " |")
    return [*tables[0], "", *tables[1], "", *numbers["says"]], numbers


def _values(asked: Sequence[codes.Asked], layer: int) -> dict[str, list[float]]:
    """What is asked of a layer → its value in each seed; cosines weighted so that both kinds of pairs have the same distances."""
    weights = asked[0].equal.pairs
    shares = [[100 * float(getattr(one.density, name)[layer]) for one in asked] for name in ("active", "effective")]
    cosines = [[float(np.average(one.equal.cosine[which, layer], weights=weights)) for one in asked] for which in range(2)]
    read = [[float(one.probed.accuracy[layer, column]) for one in asked] for column in range(len(ASKED))]
    return dict(zip((*_MEASURED, *ASKED), (*shares, *cosines, *read), strict=True))


def _scores(workdir: Path) -> dict[str, float]:
    """Seed → bits per byte of the last evaluation that the run wrote down."""
    found = {}
    for folder in seed_folders(workdir) or [workdir]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluations = [line["evaluation"] for line in lines if "evaluation" in line]
        found[str(read_experiment(folder).seed)] = evaluations[-1]["validation"]["bits_per_byte"]
    return found


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=Path, help="folder of runs of configs/repeats.py")
    parser.add_argument("--text", type=Path, help="folder of runs of configs/text.py")
    parser.add_argument("--gpt", type=Path, help="folder of runs of configs/text.py:gpt")
    parser.add_argument("--json", type=Path, help="where all numbers are written")
    flags = parser.parse_args()
    if (flags.repeats is None) == (flags.text is None) or (flags.text is None) != (flags.gpt is None):
        parser.error("give --repeats, or --text and --gpt")
    lines, numbers = repeats_table(flags.repeats) if flags.repeats else codes_tables([flags.text, flags.gpt])
    print("\n".join(lines))
    if flags.json:
        flags.json.write_text(json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
