"""Ask a trained model everything, and write one page: ``bdh report --workdir=runs/text``.

The page is one HTML file that needs no network: what the model is, how it was trained, its scores, and then what it does inside, each
finding with a figure, one sentence, and the null that it was held against. The numbers are CSV files in a folder beside it.
Sections that this model cannot be asked say why. docs/how-to/report.md explains how to read it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import logging
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from bdh_jax.analysis.held_out import held_out
from bdh_jax.analysis.report import overview, page
from bdh_jax.analysis.report.base import Finding, NotApplicable, Section, Subject, sections
from bdh_jax.analysis.report.page import Answer, Page
from bdh_jax.commands._flags import define_path
from bdh_jax.commands._output import write_output
from bdh_jax.config import ConfigError
from bdh_jax.config.base import one_line
from bdh_jax.config.paths import check_writable
from bdh_jax.console import Progress
from bdh_jax.data.documents import expanded
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.experiment import ExperimentConfig, load, read_experiment
from bdh_jax.lifelong.result import LifelongResult
from bdh_jax.lifelong.sweep import LifelongSweep
from bdh_jax.models.base import count_parameters
from bdh_jax.parallel.mesh import MeshConfig, make_mesh
from bdh_jax.runs.checkpoint import read_slow
from bdh_jax.runs.folder import (
    CHECKPOINTS,
    METRICS,
    RESULTS,
    check_text,
    config_json,
    read_json,
    read_run,
    seed_folders,
    trained_texts,
)
from bdh_jax.runs.lock import only_writer
from bdh_jax.runs.provenance import describe_start
from bdh_jax.runs.reporter import read_rows
from bdh_jax.tasks.base import Task
from bdh_jax.tasks.facts import VALUES
from bdh_jax.tasks.mixed import unigram_bits
from bdh_jax.tasks.text import Text, TextConfig
from bdh_jax.training.init_from import started_with, trained_tokenizer
from bdh_jax.training.step import make_keys
from bdh_jax.types import Slow

_LOGGER = logging.getLogger("bdh_jax")
_LIBRARIES = ("igraph", "jinja2", "markupsafe", "powerlaw", "vl_convert")
_ROWS = 64
"""Held-out sequences of a report of minutes."""
_BEGINNING = 2**16
"""Characters of a file that tell whether it is a report."""

_WORKDIR = define_path("workdir", "Folder of a training run, of one seed or several.")
_OUT = define_path("out", "The page, FILE.html; its tables go into FILE_csv. Default: report.html in the workdir.")
_ONLY = flags.DEFINE_list("only", None, "Sections to ask, by name; default: all.")
_SETS = define_path(
    "sets",
    "Two or more text files with commas between, a text a line: sets of texts to tell apart, each called as its file.",
    several=True,
)
_BUDGET = flags.DEFINE_float(
    "budget",
    1.0,
    "How thorough: 1 takes minutes; draws, shuffles and sequences go with it.",
    lower_bound=0.01,
    upper_bound=100,
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a report that is there.")


def main(argv: Sequence[str]) -> None:
    """Write the report that the flags name.

    Raises:
      ConfigError: a flag is missing or wrong, something is there already, or a library is not installed.
      CheckpointError: the run cannot be read, or its text is another one now.
      DataError: the text is gone.
    """
    del argv
    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing: name the folder of a training run, such as --workdir=runs/text")
    _check_libraries()
    workdir = Path(_WORKDIR.value)
    asked = _asked(sections(), _ONLY.value)
    out = Path(_OUT.value) if _OUT.value else workdir / "report.html"
    before = _check_out(out)
    own = _own(_SETS.value.split(",")) if _SETS.value else None
    failures: list[Exception] = []
    with only_writer(tables_folder(out)):
        report = _report(workdir, asked, own, failures)
        with Progress("figures", sum(len(answer.findings) for answer in report.answers)) as progress:
            html = page.render(dataclasses.replace(report, tables=tables_folder(out).name), progress.advance)
        _write(out, html, page.tables(report), before)
    if failures:
        _LOGGER.warning("%s is whole but for what failed (%d of %d sections)", out, len(failures), len(asked))
        raise failures[0]
    _LOGGER.info("open %s in a browser; it can be sent around as it is", out)


def tables_folder(out: Path) -> Path:
    """The folder of a page's tables."""
    return out.with_name(f"{out.stem}_csv")


def _check_libraries() -> None:
    missing = [name.replace("_", "-") for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f'a report needs {", ".join(missing)}, which is not installed: pip install "bdh_jax[report]"')


def _asked(known: Mapping[str, Section], only: Sequence[str] | None) -> dict[str, Section]:
    unknown = [name for name in only or () if name not in known]
    if unknown:
        raise ConfigError(f"--only names {unknown[0]!r}; sections: {', '.join(known)}")
    return {name: section for name, section in known.items() if only is None or name in only}


def _check_out(out: Path) -> list[str]:
    """Ask whether the page and its tables can be written.

    Returns:
      The tables of the report that is replaced, from its folder on.

    Raises:
      ConfigError: names what is in the way.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out={out} must be a page, FILE.html")
    check_writable(out)
    check_writable(tables_folder(out) / "section.finding.csv")
    before: list[str] = []
    if os.path.lexists(out):
        found = None
        if out.is_file():
            with out.open(encoding="utf-8", errors="replace") as file:
                found = page.tables_of(file.read(_BEGINNING))
        if found is None:
            raise ConfigError(f"{out} is there and is no report of this command; name another file with --out")
        if not _OVERWRITE.value:
            raise ConfigError(f"{out} exists; name another file with --out, or pass --overwrite")
        before = found
    mine = {name.partition("/")[2] for name in before}
    if tables_folder(out).is_dir():
        others = sorted(
            path.name for path in tables_folder(out).iterdir() if path.suffix == ".csv" and path.name not in mine
        )
        if others:
            raise ConfigError(
                f"{tables_folder(out) / others[0]} is of no report that is at {out}; move it, or name another file with --out"
            )
    return sorted(mine)


def _write(out: Path, html: str, tables: Mapping[str, str], before: Sequence[str]) -> None:
    """The tables, then the page; of a report that is replaced no table is left that the new one does not have."""
    folder = tables_folder(out)
    for name, content in tables.items():
        with _quiet():
            write_output(folder / name, content)
    for name in set(before) - set(tables):
        (folder / Path(name).name).unlink(missing_ok=True)
    _LOGGER.info("wrote %d tables into %s", len(tables), folder)
    write_output(out, html)


class _quiet:
    """A line of the log for each of many tables is too much: they are counted."""

    def __enter__(self) -> None:
        self._level = _LOGGER.level
        _LOGGER.setLevel(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        _LOGGER.setLevel(self._level)


def _own(names: Sequence[str]) -> dict[str, list[str]]:
    """Name of a set → its texts."""
    texts: dict[str, list[str]] = {}
    for name in names:
        path = expanded(name)
        try:
            found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--sets: {path} cannot be read as text ({error}); give files with a text a line") from error
        if not found:
            raise ConfigError(f"--sets: {path} has no line with text; give files with a text a line")
        if path.stem in texts:
            raise ConfigError(f"--sets has two files called {path.stem}; rename one, since a set is called as its file")
        texts[path.stem] = found
    if len(texts) < 2:
        raise ConfigError(f"--sets={names[0]} is one set; give two or more files, which are told apart")
    return texts


def _report(
    workdir: Path, asked: Mapping[str, Section], own: Mapping[str, Sequence[str]] | None, failures: list[Exception]
) -> Page:
    folders = seed_folders(workdir) or [workdir]
    experiment = read_experiment(folders[0])
    if own is not None and not experiment.task.reads_text:
        raise ConfigError(f"--sets: {workdir} was trained on the task {experiment.task.name!r}, not on text; leave it out")
    rows = max(8, round(_ROWS * min(_BUDGET.value, 1.0)))
    task = _task(experiment, folders, rows)
    lines = {read_experiment(folder).seed: _lines(folder) for folder in folders}
    subject = dataclasses.replace(_subject(workdir, folders, task, rows), own=own, metrics=lines, budget=_BUDGET.value)
    evaluations = _scored(workdir, folders, lines)
    answers = [
        Answer(
            "training",
            "How it was trained",
            "What the run wrote down: its loss, its evaluations, and every setting.",
            [*overview.curves(lines), _settings(experiment)],
        ),
        Answer(
            "scores",
            "How well it does",
            "Scores on sequences that it was not trained on, beside what bounds them.",
            [*overview.scores(evaluations, _baselines(task)), *_retention(workdir)],
            refusal="" if evaluations else "The run has not been evaluated yet.",
        ),
    ]
    with Progress("sections", len(asked)) as progress:
        for name, section in asked.items():
            answers.append(_answer(name, section, subject, workdir, failures))
            progress.advance(1, status=section.title)
    now = describe_start(0, 0)
    return Page(
        title=f"Inside {subject.name}",
        lead=_lead(experiment, subject),
        notice=_beginning(folders),
        facts=_facts(experiment, folders, subject),
        answers=answers,
        made=(
            f"Made by bdh_jax {now['versions']['bdh_jax']} on {now['time'][:10]}: `{_command(workdir, _ONLY.value)}`; {len(subject.tokens)} held-out sequences of "
            f"{subject.tokens.shape[1]} tokens, budget {_BUDGET.value:g}."
        ),
    )


def _answer(name: str, section: Section, subject: Subject, workdir: Path, failures: list[Exception]) -> Answer:
    """What a section found. What it fails with is put off until the page with all the others is written."""
    plain = Answer(name, section.title, section.asks, command=_command(workdir, [name]))
    try:
        return dataclasses.replace(plain, findings=list(section.find(subject)))
    except NotApplicable as reason:
        return dataclasses.replace(plain, refusal=str(reason))
    except Exception as error:
        failures.append(error)
        return dataclasses.replace(plain, failure=f"{type(error).__name__}: {error}")


def _command(workdir: Path, only: Sequence[str] | None) -> str:
    parts = ["bdh", "report", f"--workdir={workdir}"]
    parts += [f"--only={','.join(only)}", f"--out={'_'.join(only)}.html"] if only else []
    parts += [f"--sets={_SETS.value}"] if _SETS.value else []
    parts += [f"--budget={_BUDGET.value:g}"] if _BUDGET.value != 1 else []
    return shlex.join(parts)


def _task(experiment: ExperimentConfig, folders: Sequence[Path], windows: int) -> Task:
    """The run's task. Of a text so many windows are looked at, spread evenly over all that validates.

    Raises:
      CheckpointError: if the text is another one now: what was held out may be what was trained on.
    """
    config = experiment.task
    if isinstance(config, TextConfig):
        config = dataclasses.replace(config, evaluation_windows=windows)
    before = trained_texts(folders)
    task = config.make(seed=experiment.seed, batch_size=experiment.train.batch_size, data=experiment.data)
    for folder, text in before.items():
        check_text(folder, text, task.fingerprint)
    return task


def _subject(workdir: Path, folders: Sequence[Path], task: Task, rows: int) -> Subject:
    seeds: dict[int, Slow] = {}
    checkpoints: dict[int, dict[int, Callable[[], Slow]]] = {}
    config = None
    for folder in folders:
        seed = read_experiment(folder).seed
        config, seeds[seed] = load(folder, "last")
        checkpoints[seed] = {step: functools.partial(_slow_at, folder, step) for step in _steps(folder)}
    if config is None:
        raise ConfigError(f"--workdir={workdir} holds no run; name the folder of a training run")
    initialise, mesh = jax.jit(config.build().init_slow), make_mesh(MeshConfig())
    began = _began(folders)

    def untrained(seed: int) -> Slow:
        return began[seed] if began else initialise(make_keys(seed, mesh)[0])

    tokens, valid = held_out(task, rows)
    encode, decode = _reading(trained_tokenizer(folders[0])) if task.config.reads_text else (None, None)
    return Subject(
        name=workdir.absolute().name,
        config=config,
        seeds=seeds,
        untrained=functools.lru_cache(maxsize=8)(untrained),
        tokens=tokens,
        valid=valid,
        encode=encode,
        decode=decode,
        checkpoints=checkpoints,
    )


def _began(folders: Sequence[Path]) -> dict[int, Slow]:
    """Seed → the weights that it began with, where those were another run's; empty if any seed's are not there or untrained."""
    if any(_last_step(folder) == 0 for folder in folders):
        return {}
    found = {read_experiment(folder).seed: started_with(folder) for folder in folders}
    there = {seed: slow for seed, slow in found.items() if slow is not None}
    return there if len(there) == len(found) else {}


def _last_step(folder: Path) -> int:
    return max(_steps(folder), default=-1)


def _steps(folder: Path) -> list[int]:
    """Of its checkpoints, ascending; none of a run that was exported, which has its last weights alone."""
    kept = folder / CHECKPOINTS
    return sorted(int(path.name) for path in kept.iterdir() if path.name.isdecimal()) if kept.is_dir() else []


def _beginning(folders: Sequence[Path]) -> str:
    """What a page has to say of a run whose weights did not begin at random; empty of others."""
    origin = read_run(folders[0]).init_from
    if origin is None:
        return ""
    named = (
        f"those of `{origin['folder']}` at step {origin['step']:,}"
        if "folder" in origin
        else "made of other models' weights"
    )
    if _began(folders):
        return (
            f'Its first weights were {named}. Wherever this page says "untrained" or "before its first step" it means those weights: what is '
            "found beside them is what this run has changed."
        )
    return (
        f"Its first weights were {named}, and this run has not trained them, or they are not there any more. Wherever this page says "
        '"untrained" or "before its first step" it means random weights: what is found beside them is owed to all training before, too.'
    )


def _slow_at(folder: Path, step: int) -> Slow:
    return read_slow(folder, step).slow


def _reading(tokenizer: Tokenizer) -> tuple[Callable[[str], np.ndarray], Callable[[Sequence[int]], str]]:
    """From text to tokens, and back. Ids that stand for no text, as a task beside it has, are shown as numbers."""

    def encode(text: str) -> np.ndarray:
        return np.asarray(tokenizer.encode(text.encode()), np.int32)

    def decode(tokens: Sequence[int]) -> str:
        parts = [
            tokenizer.decode([token]) if int(token) < tokenizer.vocab_size else f"⟨{int(token)}⟩".encode()
            for token in tokens
        ]
        return b"".join(parts).decode(errors="replace")

    return encode, decode


def _lines(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote down while it trained, up to its last checkpoint or end."""
    return read_rows(folder / METRICS, until=read_experiment(folder).train.steps)


def _scored(workdir: Path, folders: Sequence[Path], lines: overview.Lines) -> dict[int, Mapping[str, Any]]:
    """Seed → its results, or the last evaluation of a run that has not come to its end."""
    found: dict[int, Mapping[str, Any]] = {}
    for folder in folders:
        seed = read_experiment(folder).seed
        if (folder / RESULTS).exists():
            found[seed] = read_json(folder / RESULTS)["evaluation"]
        else:
            evaluated = [line["evaluation"] for line in lines[seed] if "evaluation" in line]
            if evaluated:
                found[seed] = evaluated[-1]
    return found


def _baselines(task: Task) -> dict[str, float]:
    if not isinstance(task, Text):
        return {}
    size = np.asarray(task.data.tokenizer.token_bytes)[np.asarray(task.validation.tokens)[1:]].mean()
    uniform = float(np.log2(task.vocab_size) / size)
    return {"all tokens alike": uniform, "frequencies of tokens": unigram_bits(task)}


def _retention(workdir: Path) -> list[Finding]:
    """What ``bdh lifelong`` has found of this run, if it was asked."""
    path = workdir / "lifelong" / RESULTS
    if not path.exists():
        return []
    record = read_json(path)
    try:
        results = LifelongSweep.from_dict(record).results if "results" in record else (LifelongResult.from_dict(record),)
    except (ValueError, KeyError, TypeError) as error:
        _LOGGER.warning("%s is not shown: it is of another version (%s)", path, one_line(str(error), 200))
        return []
    rows = [
        {
            "function": row.name,
            "facts": result.config.stream.facts,
            "model": model,
            "stream": stream,
            **{name: float(row.scores[name][model, stream]) for name in ("recall", "harm")},
        }
        for result in results
        for row in result.rows
        for model, stream in np.ndindex(row.scores["recall"].shape)
    ]
    return overview.retention(rows, 1 / VALUES)


def _settings(experiment: ExperimentConfig) -> Finding:
    rows = [{"key": key, "value": "" if value is None else str(value)} for key, value in _flat(config_json(experiment))]
    return Finding(
        name="settings",
        title="Every setting",
        says="The configuration of the run, as `bdh config --workdir` shows it.",
        null="",
        caption="Key and value of every setting; an empty value is none.",
        alternative="A table of every setting.",
        rows=rows,
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _lead(experiment: ExperimentConfig, subject: Subject) -> str:
    config = subject.config
    seeds = f"{len(subject.seeds)} seeds" if len(subject.seeds) > 1 else "one seed"
    of = f"{config.n_layer} layer{'s' * (config.n_layer > 1)}, {_parameters(subject):,} parameters"
    text = (
        f" on {experiment.data.path and Path(str(experiment.data.path)).name or 'tiny Shakespeare'}"
        if experiment.task.reads_text
        else ""
    )
    return (
        f"A {type(config).__name__.removesuffix('Config')} of {of}, trained on the task {experiment.task.name!r}{text} with {seeds}: what it "
        "is, how well it does, and what it does inside, each held against a null that could have said no."
    )


def _parameters(subject: Subject) -> int:
    return count_parameters(subject.config.build().declared_slow())


def _facts(experiment: ExperimentConfig, folders: Sequence[Path], subject: Subject) -> dict[str, dict[str, str]]:
    config = subject.config
    model = {"architecture": config.architecture, "layers": str(config.n_layer), "width": str(config.d_model)}
    for name, field in (("neurons per layer", "n_neurons"), ("heads", "n_head")):
        if isinstance(getattr(config, field, None), int):
            model[name] = f"{getattr(config, field):,}"
    model |= {"vocabulary": f"{config.vocab_size:,}", "parameters": f"{_parameters(subject):,}"}
    fast = getattr(config, "fast", None)
    if fast is not None:
        model["fast weights"] = f"{fast.rule}, decay {fast.decay:g}" if fast.enabled else "none"
    train = experiment.train
    training = {
        "task": experiment.task.name,
        "steps": f"{train.steps:,}",
        "batch size": str(train.batch_size),
        "sequence length": f"{subject.tokens.shape[1]:,}",
        "learning rate": f"{experiment.optimizer.learning_rate:g}, {experiment.optimizer.schedule}",
        "seeds": ", ".join(map(str, subject.seeds)),
    }
    if experiment.task.reads_text and experiment.data.path:
        training["text"] = Path(str(experiment.data.path)).name
    return {"Architecture": model, "Training": training, "Provenance": _provenance(folders)}


def _provenance(folders: Sequence[Path]) -> dict[str, str]:
    start = read_run(folders[0]).starts[-1]
    versions, device, git = (start.get(name) or {} for name in ("versions", "device", "git"))
    commit = str(git.get("commit", ""))[:12]
    found = {
        "started": str(start.get("time", ""))[:16].replace("T", " "),
        "bdh_jax": str(versions.get("bdh_jax", "")),
        "commit": f"{commit}, modified" if commit and git.get("modified") else commit,
        "JAX": str(versions.get("jax", "")),
        "device": f"{device.get('count', '')} × {device.get('kind', '')}" if device else "",
        "starts": str(len(read_run(folders[0]).starts)),
    }
    seconds = [read_json(folder / RESULTS)["seconds"] for folder in folders if (folder / RESULTS).exists()]
    if seconds:
        found["seconds per seed"] = f"{sum(seconds) / len(seconds):,.0f}"
    return {name: value for name, value in found.items() if value}
