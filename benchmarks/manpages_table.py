"""Language in windows of 512 bytes: what forgetting and write-back are worth in text, beside a gated DeltaNet and a GPT of equal size.

    python benchmarks/manpages_table.py --workdir=runs/manpages --data=FILES \\
      --json benchmarks/results/manpages_cpu.json --write docs/results/language.md

FILES are documents, one a row in the column ``text`` (any files, folders or globs that ``data.path`` takes); docs/how-to/merge.md says how to get
manual pages. Pages of which more than half stood in others are left out first; a tenth of the others, chosen by their content, is held out.

Four parts, in this order. ``rates`` looks for the learning rate of each model, and ``sweep`` what write-back can be, both with a seed that is not
reported, at fewer steps. ``models`` trains each model with the best of them, with all seeds; those of one seed read the same windows in the same
order. ``carried`` trains the best two again with states that are carried from window to window. A fifth, ``twice``, is trained if it is named: passages
that stand twice in a row. What a part is chosen by is trained with it, or with ``--given`` taken from the file of ``--json``. Finished runs are only
read, so that the command can be interrupted and given again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import jax
import measure
import numpy as np
import trainings

from bdh_jax.analysis import language, repeated_strings
from bdh_jax.config.convert import change
from bdh_jax.config.whole_files import write_whole
from bdh_jax.data.config import DataConfig
from bdh_jax.data.corpus import Corpus, draw
from bdh_jax.data.documents import find_files, read_documents
from bdh_jax.data.duplicates import distinct
from bdh_jax.data.load import load_text
from bdh_jax.experiment import ExperimentConfig, load
from bdh_jax.models.base import ModelConfig, count_parameters
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.training.step import make_predict
from bdh_jax.types import Slow

VALIDATION_SEED = 100
"""Of the runs by which something is chosen."""
PARTS = ("rates", "sweep", "models", "carried")
MORE = "twice"
"""A part that is trained if it is named."""
ROWS = ("models", "carried", MORE)
"""Parts that are rows of models with a run for each seed."""
MARKS = ("<!-- made by benchmarks/manpages_table.py -->", "<!-- end -->")
PAGES = "pages.jsonl"
TWICE = ("twice.train.jsonl", "twice.held_out.jsonl")
PASSAGES = 8000
"""That stand twice, at most."""
STRINGS = "strings.json"
RATE_STEPS, SWEEP_STEPS = 400, 200
"""Of ``rates`` and of ``sweep``."""
WINDOWS = 240
"""Held-out windows by which each trained model is scored."""
CARRIED_BYTES = 2**15
"""Held-out bytes that are read with carried states."""
RATES, SMALLEST_RATE, LARGEST_RATE = (4e-3, 8e-3), 5e-4, 0.128
"""Learning rates to begin with, and the smallest and the largest that are tried."""
RECALL = {"rule": "delta", "learning_rate": 1.0, "decay": 0.99, "address_source": "gated"}
"""Write-back as tasks of recall in text have it (``configs/nback.py:text``)."""
MODELS = {
    "BDH": "",
    "BDH with μ": "decay",
    "write-back": "write_back",
    "gated DeltaNet": "gated_deltanet",
    "GPT": "gpt",
}
"""Name → variant of ``configs/manpages.py``."""
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "η .001": {"learning_rate": 0.001},
    "η .3": {"learning_rate": 0.3},
    "η 1": {"learning_rate": 1.0},
    "λ .9": {"decay": 0.9},
    "λ .999": {"decay": 0.999},
    "delta": {"rule": "delta"},
    "gated delta, η .3": {"rule": "gated_delta", "learning_rate": 0.3},
    "addresses centred": {"address_norm": "centred"},
    "address of gated code": {"address_source": "gated"},
    "address of the token itself": {"address": "current"},
    "gradient stopped": {"write_gradient": "stop"},
    "as in recall": RECALL,
}
"""What write-back can be: changes of ``model.fast`` of the variant ``write_back``."""

TWICE_MODELS = ("BDH with μ", "write-back", "gated DeltaNet")
"""What is trained on passages that stand twice; write-back there is that of ``RECALL``."""


def get_config(arg: str = "") -> ExperimentConfig:
    """Of ``configs/manpages.py``, to which ``measure`` has set the path."""
    return importlib.import_module("configs.manpages").get_config(arg)


class Run(NamedTuple):
    """One training."""

    part: str
    name: str
    variant: str
    seed: int
    steps: int | None = None
    """None: those of the experiment."""
    rate: float | None = None
    fast: tuple[tuple[str, Any], ...] = ()
    twice: bool = False
    """Whether it reads passages that stand twice."""

    def folder(self, workdir: Path) -> Path:
        """Where it is."""
        name = "".join(c if c.isalnum() or c in ".=" else "_" for c in self.name)
        return workdir / self.part / name / f"seed{self.seed}"

    def config(self, workdir: Path, *, smoke: bool = False) -> ExperimentConfig:
        """What is trained."""
        config = get_config(",".join(filter(None, [self.variant, "smoke" * smoke])))
        if self.fast:
            config = change(config, "model.fast", **dict(self.fast))
        if self.rate is not None:
            config = change(config, "optimizer", learning_rate=self.rate)
        if self.steps is not None and not smoke:
            config = change(config, "train", steps=self.steps, evaluate_every=self.steps, checkpoint_every=self.steps)
        data = DataConfig(path=str(workdir / PAGES))
        if self.twice:
            data = DataConfig(path=str(workdir / TWICE[0]), validation_path=str(workdir / TWICE[1]))
        return change(config, data=data, seed=self.seed)

    def as_json(self) -> str:
        """For the process that trains it."""
        return json.dumps(self._asdict())

    @staticmethod
    def of_json(text: str) -> Run:
        """What :meth:`as_json` gave."""
        values = json.loads(text)
        return Run(**values | {"fast": tuple((name, value) for name, value in values["fast"])})


def main() -> None:
    """Train what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--data", required=True, help="files of documents, with commas between")
    parser.add_argument(
        "--parts", nargs="+", choices=(*PARTS, MORE), default=PARTS, help="what is trained, and what it is chosen by"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        choices=MODELS,
        default=tuple(MODELS),
        help="of models and carried: train these, the others are those of --json",
    )
    parser.add_argument("--seeds", default="0,1,2", help="seeds of what is reported")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each in a process of its own")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes and a few steps: does it run?")
    parser.add_argument("--json", type=Path, help="write all numbers there; parts that are there already stay")
    parser.add_argument(
        "--given",
        action="store_true",
        help="rates, and what write-back is, are those of the file of --json, unless --parts names them",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=CHANGES, default=(), help="of the sweep: train these, the others are those of --json"
    )
    parser.add_argument(
        "--write", type=Path, help="put the tables into this page, between its marks; parts may be those of --json"
    )
    parser.add_argument("--no_training", action="store_true", help="print what is finished, and train nothing")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        train_one(Run.of_json(options.one), options)
        return
    known = measure.numbers(options.json)
    lacking = [part for part in PARTS if part not in options.parts and part not in known]
    if options.write and lacking:
        # The page has one block, which some parts alone would empty of the others.
        parser.error(
            f"--write puts {', '.join(PARTS)} into the page, and there is no {', '.join(lacking)}: neither --parts nor a file of --json has it"
        )
    if options.given and (
        lacking := [part for part in ("rates", "sweep") if part not in options.parts and part not in known]
    ):
        parser.error(f"--given needs {', '.join(lacking)} in the file of --json; run without it first")
    lacking = [name for name in MODELS if name not in (*options.models, *known.get("models", {}))]
    if lacking and "carried" in options.parts:
        parser.error(
            f"carried is for the best two of all models, and neither --models nor a file of --json has {', '.join(lacking)}"
        )
    if options.kinds and "as it is" not in (known.get("sweep") or {"rows": {}})["rows"]:
        parser.error("--kinds adds to a sweep, and the file of --json has none; run --parts sweep without it first")
    command = measure.command()
    pages = prepare(options.data, options.workdir / PAGES)
    if options.given and known["pages"] != pages:
        parser.error(f"--given: the file of --json was measured on other pages ({known['pages']}) than --data has ({pages})")
    # Of an interrupted command some parts have no run yet.
    found = {part: rows for part, rows in measured(options, known).items() if part not in ROWS or any_run(rows)}
    commands = known.get("commands", {}) | {part: command for part in found if part in (*PARTS, MORE)}
    found = known | {"pages": pages, "commands": commands} | found
    lines = "\n".join(tables(found))
    print(lines)
    measure.write_json(options.json, found)
    if options.write:
        measure.write_between(options.write, MARKS, lines)


def any_run(rows: dict[str, Any]) -> bool:
    """Whether a part of rows with runs has one that came to its end."""
    return any(any(row["runs"].values()) for row in rows.values())


def prepare(data: str, out: Path) -> dict[str, int]:
    """The documents that are kept, into a file, in an order that their content decides. Returns counts."""
    out.parent.mkdir(parents=True, exist_ok=True)
    documents = [document for path in find_files(data) for document in read_documents(path)]
    documents.sort(key=lambda document: (draw(np.frombuffer(document, np.uint8)), document))
    kept = list(distinct(documents))
    rows = [json.dumps({"text": document.decode("utf-8", "replace")}, ensure_ascii=False) for document in kept]
    content = "\n".join(rows) + "\n"
    write(out, content)
    text = load_text(DataConfig(path=str(out)))
    for name, corpus in zip(TWICE, (text.train, text.validation), strict=True):
        write(out.parent / name, doubled(corpus))
    return {
        "documents": len(documents),
        "kept": len(kept),
        "train_documents": text.train.documents,
        "train_bytes": len(text.train.tokens),
        "held_out_documents": text.validation.documents,
        "held_out_bytes": len(text.validation.tokens),
    }


def write(path: Path, content: str) -> None:
    """Write a file, unless it says that already: runs keep a fingerprint of their text."""
    if not path.exists() or path.read_text(encoding="utf-8") != content:
        write_whole(path, content)


def doubled(corpus: Corpus) -> str:
    """Rows of passages that stand twice, half a window each. With one more byte behind them all, windows begin where passages do."""
    pages = repeated_strings.twice(corpus, get_config().task.length // 2, PASSAGES)  # pyright: ignore[reportAttributeAccessIssue]
    rows = []
    for number in range(pages.documents):
        document = pages.document(number).tobytes()
        # A passage that begins or ends within a letter is left out.
        with contextlib.suppress(UnicodeDecodeError):
            rows.append(json.dumps({"text": document.decode("utf-8")}, ensure_ascii=False))
    return "\n".join([*rows, json.dumps({"text": "."})]) + "\n"


def measured(options: argparse.Namespace, known: dict[str, Any]) -> dict[str, Any]:
    """Part → what is found of each row of it, trained if it is missing; ``known`` is what a file of numbers has."""
    seeds = [int(seed) for seed in options.seeds.split(",")]
    found: dict[str, Any] = {"seeds": seeds}
    given = {part for part in ("rates", "sweep") if options.given and part not in options.parts}
    rates = given_rates(known["rates"]) if "rates" in given else best_rates(found, options)
    if set(options.parts) == {"rates"}:
        return found
    # Kinds that are named are trained, whatever is known of them.
    kinds = {name: row for name, row in known["sweep"]["rows"].items() if name in CHANGES} if options.kinds else {}
    kinds = {name: row for name, row in kinds.items() if name not in options.kinds}
    chosen = known["sweep"] if "sweep" in given else sweep(rates["write-back"], kinds, options)
    if "sweep" not in given:
        found["sweep"] = chosen
    best = tuple(chosen["rows"].get(chosen["best"], {"fast": {}})["fast"].items())
    # What is asked first comes first, and then seed by seed, so that an interrupted table has something to say.
    asked = ("BDH with μ", "write-back")
    rows = {
        (name, seed): Run("models", name, MODELS[name], seed, None, rates[name], best if name == "write-back" else ())
        for names in (asked, [name for name in MODELS if name not in asked])
        for seed in seeds
        for name in names
    }
    bits = {name: list(of(row, "whole").values()) for name, row in known.get("models", {}).items()}
    if {"models", "carried"} & set(options.parts):
        ours = {row: run for row, run in rows.items() if row[0] in options.models}
        now = scored(ours, options)
        bits |= {name: [now[name, seed] for seed in seeds] for name in options.models}
        found["models"] = beside(known.get("models", {}), described(ours, options))
    if MORE in options.parts:
        twice = {
            (name, seed): rows[name, seed]._replace(part="twice", twice=True) for seed in seeds for name in TWICE_MODELS
        }
        for name, seed in twice:
            if name == "write-back":
                twice[name, seed] = twice[name, seed]._replace(fast=tuple(RECALL.items()))
        scored(twice, options)
        found["twice"] = described(twice, options)
    if "carried" in options.parts:
        stateful = [name for name in MODELS if name not in ("BDH", "GPT")]
        two = sorted(stateful, key=lambda name: statistics.fmean(bits[name]))[:2]
        carried = {
            (name, seed): rows[name, seed]._replace(part="carried", variant=f"{MODELS[name]},tbptt")
            for seed in seeds
            for name in two
            if name in options.models
        }
        scored(carried, options)
        kept = {name: row for name, row in known.get("carried", {}).items() if name in two}
        found["carried"] = beside(kept, described(carried, options))
    return found


def beside(known: dict[str, Any], rows: dict[str, Any]) -> dict[str, Any]:
    """Rows of models that are known and others, in order; of two of one model that of ``rows``."""
    both = known | rows
    return {name: both[name] for name in MODELS if name in both}


def best_rates(found: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """The learning rate of each model. Where the best of those tried is the largest or the smallest, the next one is tried as well.

    Write-back has the rate that is best without it, for BDH with μ: what is asked is what it adds.
    """
    tried = {name: set(RATES) for name in MODELS if name != "write-back"}
    while True:
        runs = {
            (name, rate): Run("rates", f"{MODELS[name]}_{rate:g}", MODELS[name], VALIDATION_SEED, RATE_STEPS, rate)
            for name, rates in tried.items()
            for rate in sorted(rates)
        }
        bits = scored(runs, options)
        best = {name: min(sorted(rates), key=lambda rate, name=name: bits[name, rate]) for name, rates in tried.items()}
        before = sum(map(len, tried.values()))
        for name, rate in best.items():
            tried[name] |= (
                {max(rate / 2, SMALLEST_RATE)}
                if rate == min(tried[name])
                else {min(rate * 2, LARGEST_RATE)}
                if rate == max(tried[name])
                else set()
            )
        if sum(map(len, tried.values())) == before:
            break
    found["rates"] = [
        {"model": name, "rate": rate, "bits": finite(bits[name, rate])}
        for (name, rate), run in runs.items()
        if is_done(run, options)
    ]
    return best | {"write-back": best["BDH with μ"]}


def given_rates(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The learning rate of each model by rows that :func:`best_rates` found."""
    best = {}
    for row in sorted((row for row in rows if row["bits"] is not None), key=lambda row: (row["bits"], row["rate"])):
        best.setdefault(row["model"], row["rate"])
    return best | {"write-back": best["BDH with μ"]}


def sweep(rate: float, known: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What write-back has to be, by its bits per byte with a seed that is not reported.

    Args:
      rate: the learning rate.
      known: kind → its row, of those that are not trained now.
      options: of the command.

    Returns:
      "best", the best kind, and "rows": kind → "fast", its changes of ``model.fast``, and "bits", None of one that diverged.
    """

    def train(kinds: dict[str, dict[str, Any]]) -> dict[str, Any]:
        runs = {
            name: Run("sweep", name, "write_back", VALIDATION_SEED, SWEEP_STEPS, rate, tuple(fast.items()))
            for name, fast in kinds.items()
        }
        bits = scored(runs, options)
        return {
            name: {"fast": dict(run.fast), "bits": finite(bits[name])} for name, run in runs.items() if is_done(run, options)
        }

    def bits_of(name: str) -> float:
        bits = rows[name]["bits"] if name in rows else None
        return math.inf if bits is None else bits

    rows = known | train({name: fast for name, fast in CHANGES.items() if name not in known})
    helped = sorted((name for name in CHANGES if bits_of(name) < bits_of("as it is")), key=bits_of)
    # Of two that change the same the better one counts.
    together = {key: value for name in reversed(helped) for key, value in CHANGES[name].items()}
    if len(helped) > 1 and together not in CHANGES.values():
        rows |= train({"all that helped": together})
    rows = {name: rows[name] for name in (*CHANGES, "all that helped") if name in rows}
    return {"best": min(rows, key=bits_of, default="as it is"), "rows": rows}


def finite(bits: float) -> float | None:
    """None for a run that diverged."""
    return bits if math.isfinite(bits) else None


def scored(runs: dict[Any, Run], options: argparse.Namespace) -> dict[Any, float]:
    """Bits per byte of the held-out text, by the evaluation at the end of training; infinite of a run that diverged, and with ``--no_training`` of
    one that is missing, which is trained otherwise."""
    if not options.no_training:
        trainings.do_all(
            list(runs.values()),
            lambda run: is_done(run, options),
            lambda run: apart(run, options),
            lambda run: f"{run.part}: {run.name}",
            options.jobs,
        )
    results = {name: of_run(run, options) for name, run in runs.items()}
    return {
        name: float("inf") if result is None else result["evaluation"]["validation"]["bits_per_byte"]
        for name, result in results.items()
    }


def is_done(run: Run, options: argparse.Namespace) -> bool:
    """Whether there is nothing left to do for a run."""
    folder, config = run.folder(options.workdir), run.config(options.workdir, smoke=options.smoke)
    # Of one that is reported there are scores besides its results.
    scored_too = run.steps is not None or (folder / STRINGS).exists() or (folder / trainings.DIVERGED).exists()
    return trainings.is_over(config, folder) and scored_too


def of_run(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """The results of a run that came to its end."""
    return trainings.result(run.config(options.workdir, smoke=options.smoke), run.folder(options.workdir))


def apart(run: Run, options: argparse.Namespace) -> None:
    """Train in a process of its own, whose messages go to a file beside the run."""
    folder = run.folder(options.workdir)
    arguments = ["--workdir", str(options.workdir), "--data", options.data, *(["--smoke"] if options.smoke else [])]
    measure.apart(__file__, [*arguments, "--one", run.as_json()], folder.with_name(f"{folder.name}.log"))


def train_one(run: Run, options: argparse.Namespace) -> None:
    """Train here, and score what is reported."""
    folder, config = run.folder(options.workdir), run.config(options.workdir, smoke=options.smoke)
    if trainings.train_here(config, folder) and run.steps is None:
        measure.kept(folder / STRINGS, lambda: scores_of(config, folder))


def scores_of(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Bits per byte of a trained model and of its ablations."""
    model, slow = load(folder, "last")
    text = load_text(config.data)
    length = config.task.length  # pyright: ignore[reportAttributeAccessIssue]
    scores = {name: strings(*part, text.validation, length) for name, part in language.ablations(model, slow).items()}
    if model.has_state:
        beginning = text.validation._replace(tokens=text.validation.tokens[:CARRIED_BYTES])
        beginning = beginning._replace(starts=beginning.starts[beginning.starts < CARRIED_BYTES])
        read = language.carried(model, slow, beginning, text.tokenizer.token_bytes)
        scores["normal"]["carried"] = read.bits_per_byte
    if isinstance(model, BDHConfig):
        scores["normal"]["learned"] = learned(model, slow)
    return scores


def strings(model: ModelConfig, slow: Slow, corpus: Corpus, length: int) -> dict[str, Any]:
    """Bits per byte by context and by place."""
    predict = make_predict(model.build(), make_mesh(MeshConfig(data=1)))(slow)
    costs = repeated_strings.cost_windows(predict, corpus, length, WINDOWS)
    passages = repeated_strings.twice(corpus, length // 2, WINDOWS // 2)
    again = repeated_strings.cost_windows(predict, passages, length, WINDOWS // 2)
    halves = repeated_strings.by_place(again, (0, length // 2 - 1, length))
    return {
        "whole": repeated_strings.whole(costs)._asdict(),
        "context": {name: share._asdict() for name, share in repeated_strings.by_context(costs).items()},
        "place": {f"{low}–{high}": share._asdict() for (low, high), share in repeated_strings.by_place(costs).items()},
        "twice": {name: share._asdict() for name, share in zip(("first", "again"), halves.values(), strict=True)},
    }


def learned(model: BDHConfig, slow: Slow) -> dict[str, list[float]]:
    """μ, η and λ of each head, those that are learned."""
    found = {
        "μ": ("attention_logit_decay", jax.nn.sigmoid),
        "η": ("fast_log_learning_rate", jax.numpy.exp),
        "λ": ("fast_logit_decay", jax.nn.sigmoid),
    }
    return {name: np.asarray(to(slow[key])).tolist() for name, (key, to) in found.items() if key in slow}


def described(rows: dict[tuple[str, int], Run], options: argparse.Namespace) -> dict[str, Any]:
    """What the tables say of each model."""
    found: dict[str, Any] = {}
    for (name, seed), run in sorted(rows.items(), key=lambda row: list(MODELS).index(row[0][0])):
        config = run.config(options.workdir, smoke=options.smoke)
        length = config.task.length  # pyright: ignore[reportAttributeAccessIssue]
        entry = found.setdefault(
            name,
            {
                "rate": config.optimizer.learning_rate,
                "steps": config.train.steps,
                "tokens": config.train.steps * config.train.batch_size * length,
                "parameters": count_parameters(config.model.build().declared_slow()),
                "multiply_adds_per_token": config.model.multiply_adds_per_token(length),
                "state_bytes": state_bytes(config.model, length),
                "runs": {},
            },
        )
        file = run.folder(options.workdir) / STRINGS
        entry["runs"][str(seed)] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    return found


def state_bytes(model: ModelConfig, length: int) -> int:
    """Of the state that a text carries; of a model without one, of keys and values of a whole window."""
    return language.state_bytes(model) if model.has_state else language.cache_bytes(model, length)


def tables(found: dict[str, Any]) -> list[str]:
    """The tables in Markdown."""
    pages = found["pages"]
    lines = [
        f"{pages['documents']:,} documents, of which {pages['kept']:,} are kept: {pages['train_bytes']:,} bytes in "
        f"{pages['train_documents']:,} documents to train on,",
        f"{pages['held_out_bytes']:,} bytes in {pages['held_out_documents']:,} held out.",
    ]
    if "models" in found:
        lines += of_models(found["models"])
    if "twice" in found:
        lines += [
            "",
            "Trained on passages that stand twice:",
            "",
            "| model | first | again | again − BDH with μ |",
            "|---|---|---|---|",
        ]
        base = of(found["twice"]["BDH with μ"], "twice", label="again")
        for name, row in found["twice"].items():
            first, again = (of(row, "twice", label=label) for label in ("first", "again"))
            cells = [measure.spread(list(first.values())), measure.spread(list(again.values()))]
            lines.append(f"| {name} | {' | '.join(cells)} | {difference(again, base) * (name != 'BDH with μ')} |")
    if "carried" in found:
        lines += of_carried(found["models"], found["carried"])
    lines += ["", f"How the rates were chosen (seed {VALIDATION_SEED}, {RATE_STEPS} steps):", ""]
    lines += ["| model | rate | bits per byte |", "|---|---|---|"]
    lines += [f"| {row['model']} | {row['rate']:g} | {shown(row['bits'])} |" for row in found["rates"]]
    if "sweep" in found:
        rows = found["sweep"]["rows"]
        lines += ["", f"How write-back was chosen (seed {VALIDATION_SEED}, {SWEEP_STEPS} steps):", ""]
        lines += ["| write-back | bits per byte |", "|---|---|"]
        lines += [
            f"| {name}{', chosen' if name == found['sweep']['best'] else ''} | {shown(row['bits'])} |"
            for name, row in rows.items()
        ]
    return lines


def of_models(rows: dict[str, Any]) -> list[str]:
    """What the models are and score, by place and by context, and what write-back adds."""
    lines = ["", "| model | weights | state, bytes | multiply-adds a byte | rate |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        numbers = (f"{row[key]:,}" for key in ("parameters", "state_bytes", "multiply_adds_per_token"))
        lines.append(f"| {name} | {' | '.join(numbers)} | {row['rate']:g} |")
    bits = {name: of(row, "whole") for name, row in rows.items()}
    seeds, base = list(next(iter(rows.values()))["runs"]), bits.get("BDH with μ", {})
    head = ["model", *(f"seed {seed}" for seed in seeds), "mean ± sd", "− BDH with μ"]
    lines += ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, row in rows.items():
        for ablation, label in {"normal": name, "fast_off": "S unread"}.items():
            values = of(row, "whole", ablation)
            if values:
                cells = [f"{values[seed]:.3f}" if seed in values else "" for seed in seeds]
                cells += [
                    measure.spread(list(values.values())),
                    difference(values, {} if (name, ablation) == ("BDH with μ", "normal") else base),
                ]
                lines.append(f"| {label} | {' | '.join(cells)} |")
    for kind, title in (("place", "read before"), ("context", "context"), ("twice", "twice")):
        have = {name: row for name, row in rows.items() if bits[name]}
        first = next(run for row in have.values() for run in row["runs"].values() if run)["normal"][kind]
        lines += ["", f"| {title} | bytes | {' | '.join(have)} |", f"|---|---|{'---|' * len(have)}"]
        for label, share in first.items():
            cells = (f"{statistics.fmean(of(row, kind, label=label).values()):.3f}" for row in have.values())
            lines.append(f"| {label} | {share['count']:,} | {' | '.join(cells)} |")
    if bits.get("write-back") and bits.get("BDH with μ"):
        lines += ["", "| | write-back − BDH with μ | S unread − read |", "|---|---|---|"]
        pair, every = [rows["write-back"], rows["BDH with μ"]], list(bits["write-back"].values())
        lines.append(f"| all bytes | {difference(bits['write-back'], bits['BDH with μ'])} | {off(pair[0], 'whole')} |")
        run = next(run for run in pair[0]["runs"].values() if run and every)
        for kind, title in (("place", "read before:"), ("context", "context:"), ("twice", "twice:")):
            for label in run["normal"][kind]:
                both = [of(row, kind, label=label) for row in pair]
                lines.append(f"| {title} {label} | {difference(*both)} | {off(pair[0], kind, label)} |")
    return lines


def off(row: dict[str, Any], kind: str, label: str | None = None) -> str:
    """What a model of write-back loses if S is neither read nor written after training."""
    return difference(of(row, kind, "fast_off", label), of(row, kind, label=label))


def of_carried(rows: dict[str, Any], carried: dict[str, Any]) -> list[str]:
    """Training with states that are emptied, and that are carried, by windows from empty states and by reading on."""
    head = ["model", "states in training", "windows", "carried", "carried − emptied"]
    lines = ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, row in carried.items():
        reads = {}
        for label, one in (("emptied", rows[name]), ("carried", row)):
            reads[label] = {seed: run["normal"]["carried"] for seed, run in one["runs"].items() if run}
            cells = [measure.spread(list(of(one, "whole").values())), measure.spread(list(reads[label].values()))]
            lines.append(
                f"| {name} | {label} | {' | '.join(cells)} | {difference(reads[label], reads['emptied']) * (label == 'carried')} |"
            )
    return lines


def of(row: dict[str, Any], kind: str, ablation: str = "normal", label: str | None = None) -> dict[str, float]:
    """Seed → bits per byte."""
    runs = {seed: run[ablation][kind] for seed, run in row["runs"].items() if run and ablation in run}
    return {seed: (run if label is None else run[label])["bits_per_byte"] for seed, run in runs.items()}


def difference(bits: dict[str, float], others: dict[str, float]) -> str:
    """Mean difference, paired by seed, with its 95 % interval (Student's t)."""
    pairs = [bits[seed] - others[seed] for seed in bits if seed in others]
    if len(pairs) < 2:
        return ""
    mean, half = measure.paired(pairs)
    return f"{mean:+.3f} ± {half:.3f}"


def shown(bits: float | None) -> str:
    """For a cell."""
    return "diverged" if bits is None else f"{bits:.3f}"


if __name__ == "__main__":
    main()
