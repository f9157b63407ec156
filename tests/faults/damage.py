"""Damage the library's files in turn and see what reading them says: ``python -m tests.faults.damage --write docs/reliability.md``.

Every file of a checkpoint, a run's folder, a generation state, a prepared corpus, exported weights and runs, and unfinished rows is changed by one
flipped bit, cut off, emptied, filled with something else, or deleted, one at a time. What is read then is refused in one line, or the
last sound checkpoint with a warning (both are *noticed*), or it is what was written to the bit (*harmless*). Anything else is *silent*, or
a *crash*, and makes this program end with status 1.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import logging
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import CheckpointError, ConfigError, sweep
from bdh_jax.config.base import one_line
from bdh_jax.config.convert import to_dict
from bdh_jax.data import shards
from bdh_jax.data.config import DataConfig
from bdh_jax.data.errors import DataError
from bdh_jax.data.load import load_text
from bdh_jax.data.preparation import prepare
from bdh_jax.data.tokenizer import train_tokenizer
from bdh_jax.experiment import ExperimentConfig, read_experiment, record_of, tokenizer_of
from bdh_jax.fast_weights import FastWeightConfig
from bdh_jax.generation.sampling import prefill
from bdh_jax.generation.state_files import StateError, load_state, save_state
from bdh_jax.interop import WeightsError, read_pathway, write_pathway
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import CONTESTANTS
from bdh_jax.lifelong.finished_rows import FinishedRows
from bdh_jax.lifelong.result import Row
from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress, load_slow, read_slow
from bdh_jax.runs.folder import RESULTS, RUN, finished, text_digest, trained_texts, write_json, write_text
from bdh_jax.runs.weights_file import WEIGHTS, write_weights
from bdh_jax.tasks import TextConfig

ERRORS = (CheckpointError, ConfigError, DataError, StateError, WeightsError)
"""What a command turns into one line and exit status 2."""
Outcome = Literal["noticed", "harmless", "silent", "crash"]
OUTCOMES: tuple[Outcome, ...] = ("noticed", "harmless", "silent", "crash")


class Subject(NamedTuple):
    """Files, and how they are read."""

    write: Callable[[Path], None]
    """Make them in a folder that is there."""
    read: Callable[[Path], Any]
    """Folder → a pytree of arrays, texts and numbers. May write to the folder, which is a copy."""
    files: str
    """Glob of those that are damaged."""
    earlier: Callable[[], Any] = lambda: None
    """What may be read instead, with a warning."""


class Result(NamedTuple):
    """What became of one damage."""

    subject: str
    file: str
    """Its path, with what is unlike in every run taken out."""
    damage: str
    outcome: Outcome
    said: str
    """The error, or the warnings."""


# What is written and read.

MODEL = BDHConfig(
    vocab_size=300,
    n_layer=2,
    d_model=8,
    n_head=2,
    n_neurons=16,
    dropout=0.0,
    fast=FastWeightConfig(rule="delta", synapse=True),
)
CONFIG = ExperimentConfig(task=TextConfig(length=16), model=MODEL)
TEXT = [f"The {a} {b} the {a} number {i}.".encode() for a in ("cat", "dög", "猫") for b in ("sees", "is") for i in range(20)]


def _weights(seed: int) -> dict[str, jax.Array]:
    shapes = jax.eval_shape(MODEL.build().init_slow, jax.random.key(0))
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for name, leaf in shapes.items()}


def _trees(step: int) -> dict[str, Any]:
    state = (jax.tree.map(lambda leaf: leaf * 0.5, _weights(step)), jnp.int32(step))
    return {"slow": _weights(step), "optimizer": {"step": jnp.int32(step), "state": state}}


def _progress(step: int) -> RunProgress:
    return RunProgress(step=step, seconds=1.5, training_seconds=1.0, tokens=10, evaluated=False)


def _write_checkpoints(folder: Path) -> None:
    checkpoints = Checkpoints(folder, record_of(CONFIG))
    try:
        for step in (3, 4):
            checkpoints.save(_trees(step), _progress(step))
    finally:
        checkpoints.close()


def _resume(folder: Path) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), _trees(0))
    checkpoints = Checkpoints(folder, record_of(CONFIG))
    try:
        trees, progress = checkpoints.restore(target, lambda trees: trees["optimizer"]["step"])
    finally:
        checkpoints.close()
    return trees, progress.model_dump()


def _score(name: str) -> dict[str, Any]:
    return {"name": name, "accuracy": 0.5, "extra": {"everywhere": 0.25}}


def _write_run(folder: Path) -> None:
    tokenizer = train_tokenizer(TEXT, 262)
    config = record_of(CONFIG).config
    run = {"config": config, "text": "0123456789abcdef", "files": [shards.TOKENIZER], "starts": [{"step": 0}]}
    write_json(folder / RUN, {**run, "file_digests": {shards.TOKENIZER: text_digest(tokenizer)}})
    write_text(folder / shards.TOKENIZER, tokenizer)
    results = {
        "config": config,
        "seed": 0,
        "steps": 4,
        "seconds": 1.5,
        "primary": 0.5,
        "note": "",
        "evaluation": {"a": _score("a")},
    }
    write_json(folder / RESULTS, {**results, "best": {"step": 4, "primary": 0.5}})


def _read_run(folder: Path) -> Any:
    results = finished(folder, record_of(CONFIG))
    if results is None:
        raise CheckpointError(f"{folder} is not finished")  # what a command goes on with, and does not take for finished
    tokenizer = tokenizer_of(folder)
    config = json.dumps(to_dict(read_experiment(folder)), sort_keys=True)
    return results, config, tokenizer.content, trained_texts([folder])[folder]


def _write_state(folder: Path) -> None:
    model, slow = BDH(MODEL), _weights(0)
    save_state(folder / "state.safetensors", prefill(model, slow, [[3, 1, 4], [7]]), model, slow)


def _write_prepared(folder: Path) -> None:
    (folder / "text.jsonl").write_text("".join(f'{{"text": "{text.decode()}"}}\n' for text in TEXT), encoding="utf-8")
    source = dict.fromkeys(("dataset", "name", "split", "documents")) | {"column": "text", "validation_share": 0.2}
    source |= {"files": str(folder / "text.jsonl"), "train_tokenizer": 262}
    with contextlib.redirect_stderr(None):
        prepare(folder / "prepared", source, shard_tokens=1000)


def _read_prepared(folder: Path) -> Any:
    data = load_text(DataConfig(str(folder / "prepared")))
    corpora = [
        (np.asarray(corpus.tokens[0 : len(corpus.tokens)]), corpus.starts) for corpus in (data.train, data.validation)
    ]
    return corpora, data.tokenizer.content, data.fingerprint


ROW = Row("none", None, {"recall": np.array([[0.5, np.nan]])}, {"recall": np.array([[[0.25], [0.5]]])}, np.array([[8], [8]]))
ROW_OF = CONTESTANTS["none"], LifelongConfig(), None


def _write_rows(folder: Path) -> None:
    FinishedRows(folder / "unfinished.json", {"weights": ["0"]}).add(ROW, *ROW_OF)


def _read_rows(folder: Path) -> Any:
    # A row that is not there is measured again.
    row = FinishedRows(folder / "unfinished.json", {"weights": ["0"]}).get(*ROW_OF) or ROW
    return row.to_dict()


SWEPT = sweep.plan(CONFIG, grid={"optimizer.learning_rate": (1e-3, 1e30)})


def _write_sweep(folder: Path) -> None:
    write_json(folder / sweep.SWEEP, sweep.identity(SWEPT))
    for step, point in enumerate(SWEPT.rows[0].points):
        record = {"config": record_of(point.config).config, "step": step, "message": "not finite"}
        write_json(folder / point.name / sweep.DIVERGED, record)


def _write_exported(folder: Path) -> None:
    write_json(folder / RUN, {"config": record_of(CONFIG).config, "starts": []})
    write_weights(folder / WEIGHTS, _weights(0), 3)


def _read_sweep(folder: Path) -> Any:
    sweep.check_folder(SWEPT, folder)
    outcomes = [sweep.outcome_in(folder / point.name, point.config) for point in SWEPT.rows[0].points]
    if None in outcomes:
        raise CheckpointError(f"{folder} has a run that is not finished")  # which is trained, and not taken for finished
    return [outcome.to_dict() for outcome in outcomes]


SUBJECTS: dict[str, Subject] = {
    "checkpoint, loaded": Subject(
        _write_checkpoints, lambda folder: load_slow(folder, "last")[1], "checkpoints/4/**/*", lambda: _weights(3)
    ),
    "checkpoint, resumed": Subject(
        _write_checkpoints, _resume, "checkpoints/4/**/*", lambda: (_trees(3), _progress(3).model_dump())
    ),
    "run": Subject(_write_run, _read_run, "*"),
    "generation state": Subject(
        _write_state, lambda folder: load_state(folder / "state.safetensors", BDH(MODEL), _weights(0)), "*.safetensors"
    ),
    "prepared text": Subject(_write_prepared, _read_prepared, "prepared/*"),
    "exported weights": Subject(
        lambda folder: write_pathway(folder / "weights.safetensors", _weights(0)),
        lambda folder: read_pathway(folder / "weights.safetensors")[1],
        "*.safetensors",
    ),
    "exported run": Subject(_write_exported, lambda folder: tuple(read_slow(folder, "last")), "*"),
    "sweep": Subject(_write_sweep, _read_sweep, "**/*.json"),
    "rows of the lifelong benchmark": Subject(_write_rows, _read_rows, "*.json"),
}


# How it is damaged.

OTHER = b'{"format": "other", "config": {}, "step": 1}\n'


def damages(content: bytes, draw: random.Random, flips: int) -> Iterator[tuple[str, bytes | None]]:
    """What may become of a file: its kind, and the content, None for no file. The same for the same content and random numbers."""
    for _ in range(flips if content else 0):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield "flipped", bytes(changed)
    for length in sorted({len(content) // 2, len(content) - 1, draw.randrange(len(content) or 1)}):
        yield "truncated", content[: max(length, 0)]
    yield "emptied", b""
    yield "replaced", OTHER
    yield "replaced", draw.randbytes(len(content))
    yield "deleted", None


@contextlib.contextmanager
def warnings_of(name: str = "bdh_jax") -> Iterator[list[str]]:
    """The warnings that the library logs in the block."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    handler, logger = Keep(logging.WARNING), logging.getLogger(name)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def same(a: Any, b: Any) -> bool:
    """Whether two pytrees are alike to the bit."""
    leaves, other = jax.tree.leaves(a), jax.tree.leaves(b)
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(
        np.asarray(x).dtype == np.asarray(y).dtype
        and np.asarray(x).shape == np.asarray(y).shape
        and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(leaves, other, strict=True)
    )


def is_short(error: Exception) -> bool:
    """Whether an error is one line, or one with a list of the keys that differ."""
    first, *others = str(error).split("\n")
    return len(first) < 3000 and str(error).replace("\n", "").isprintable() and all(line[:2] == "  " for line in others[:-1])


def outcome_of(subject: Subject, folder: Path, sound: Any) -> tuple[Outcome, str]:
    """Read what may be damaged, and judge what comes of it."""
    with warnings_of() as said:
        try:
            read = subject.read(folder)
        except ERRORS as error:
            return ("noticed" if is_short(error) else "crash"), str(error)
        except Exception as error:
            return "crash", f"{type(error).__name__}: {error}"
    if said and (same(read, sound) or same(read, subject.earlier())):
        return "noticed", " ".join(said)
    return ("harmless" if same(read, sound) else "silent"), " ".join(said)


def try_subject(name: str, flips: int, seed: int = 0, most: int | None = None) -> Iterator[Result]:
    """Every damage of every file of a subject, or so many of them, drawn."""
    subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        whole.mkdir()
        subject.write(whole)
        sound = subject.read(_copy(whole, Path(temporary, "copy")))
        planned = [
            (path.relative_to(whole), damage, content)
            for path in sorted(whole.glob(subject.files))
            if path.is_file() and not path.name.startswith(".")
            for damage, content in damages(
                path.read_bytes(), random.Random(f"{seed} {_kind(path.relative_to(whole))}"), flips
            )
        ]
        if most is not None and most < len(planned):
            planned = random.Random(seed).sample(planned, most)
        for relative, damage, content in planned:
            copy = _copy(whole, Path(temporary, "copy"))
            if content is None:
                (copy / relative).unlink()
            else:
                (copy / relative).write_bytes(content)
            yield Result(name, _kind(relative), damage, *outcome_of(subject, copy, sound))


def _copy(whole: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    return shutil.copytree(whole, copy)


def _kind(path: Path) -> str:
    name = re.sub(r"[0-9a-f]{32}", "*", str(path))
    return re.sub(r"(train|validation)-\d+", r"\1-*", name.removeprefix("checkpoints/4/").removeprefix("prepared/"))


# The table.

START, END = "<!-- made by tests.faults.damage -->", "<!-- end -->"


def table(results: list[Result]) -> str:
    """Markdown: a row for each kind of file, with the count of each outcome."""
    counts: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        counts[result.subject, result.file][result.outcome] += 1
    lines = [f"| what | file | {' | '.join(OUTCOMES)} |", f"|---|---|{'---|' * len(OUTCOMES)}"]
    for (subject, file), count in counts.items():
        lines.append(f"| {subject} | `{file}` | {' | '.join(str(count[outcome]) for outcome in OUTCOMES)} |")
    total = collections.Counter(result.outcome for result in results)
    lines.append(f"| all | | {' | '.join(str(total[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join(lines)


def main() -> int:
    """Damage everything, print the table, and say what was not noticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", help=f"which; all by default: {', '.join(SUBJECTS)}")
    parser.add_argument("--flips", type=int, default=20, help="random bits that are flipped in each file, one at a time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    logging.getLogger("bdh_jax").propagate = False
    results: list[Result] = []
    for name in arguments.subjects or SUBJECTS:
        results += try_subject(name, arguments.flips, arguments.seed)
        print(f"{name}: {len(results)} damages so far", file=sys.stderr, flush=True)
    text = table(results)
    print(text)
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        arguments.write.write_text(f"{before}{START}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    wrong = [result for result in results if result.outcome in ("silent", "crash")]
    for result in wrong[:20]:
        print(f"{result.subject}, {result.file}, {result.damage}: {result.outcome} {one_line(result.said, 300)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
