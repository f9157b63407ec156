"""What a run's folder holds, and that it holds one run only.

It holds::

    run.json                 configuration and every start: versions, commit, device, command
    metrics.jsonl            one object a line
    tensorboard/             the same as event files
    checkpoints/<step>/      slow weights, optimiser state, history of the consolidation, progress with the configuration that made them
                             and digests of all arrays; of the last two saves and of the best evaluation
    results.json             at the end

What was found damaged stays there as ``checkpoints/damaged-<step>`` and ``metrics.jsonl.damaged``, for whoever wants to look at it.

A run over several seeds holds one such folder ``seed<k>`` each, and its own ``results.json``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import pydantic

from bdh_jax.config.convert import to_dict
from bdh_jax.config.records import SELF, RecordError, Schema, digest_of, parse, parse_json
from bdh_jax.config.whole_files import write_whole

RUN, RESULTS, METRICS, CHECKPOINTS = "run.json", "results.json", "metrics.jsonl", "checkpoints"
BELOW = 255
"""Bytes of the longest path in a run's folder: what Orbax is writing has long names."""


class CheckpointError(Exception):
    """A folder that cannot be resumed from or loaded. The message names it and the remedy."""


class DamagedError(CheckpointError):
    """A file or checkpoint that is not what was written.

    Attributes:
      path: of it.
      reason: in a few words.
    """

    def __init__(self, path: Path, reason: str):
        super().__init__(
            f"{path} cannot be read ({reason}). It may be damaged: restore it from a copy, or use another --workdir; nothing was changed"
        )
        self.path, self.reason = path, reason


class RunFile(Schema):
    """``run.json``."""

    config: dict[str, Any]
    text: str | None = None
    """Fingerprint of the text that was trained on."""
    files: list[str] = pydantic.Field(default_factory=list)
    """What else the task keeps in the folder."""
    file_digests: dict[str, str] = pydantic.Field(default_factory=dict)
    """Name of such a file → :func:`text_digest`; older versions have none."""
    starts: list[dict[str, Any]]
    init_from: dict[str, Any] | None = None
    """Whose slow weights the run started from: folder, step, and a hash of them; None of its own random ones."""
    digest: str | None = None


class _Best(Schema):
    step: pydantic.NonNegativeInt
    primary: float


class _Score(Schema):
    """Of one evaluation set: its name, and numbers."""

    __pydantic_extra__: dict[str, float | None]  # pyright: ignore[reportIncompatibleVariableOverride] - as Pydantic documents it
    name: str
    extra: dict[str, float]


class _Results(Schema):
    """``results.json`` of one seed."""

    config: dict[str, Any]
    seed: int
    steps: pydantic.NonNegativeInt
    seconds: float
    primary: float
    evaluation: dict[str, _Score]
    note: str
    best: _Best
    digest: str | None = None


class Summary(Schema):
    """``results.json`` of several seeds, as far as it is read again."""

    config: dict[str, Any]
    seeds: list[int]
    digest: str | None = None


_Schema = TypeVar("_Schema", bound=Schema)


def _as_stored(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values


@dataclasses.dataclass(frozen=True)
class Record:
    """The configuration that made a folder, as it says so itself."""

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The whole of it as JSON keeps it (:func:`config_json`)."""
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_stored
    """What an older record means today: with the keys that did not exist yet, at the defaults that it ran with."""
    how: frozenset[str] = frozenset()
    """Keys that do not identify the result, with dots between their parts (``bdh_jax.config.identity.HOW``)."""
    where: frozenset[str] = frozenset()
    """Keys that the fingerprint of a text stands for (``bdh_jax.config.identity.WHERE``)."""


class Changes(NamedTuple):
    """Keys whose values differ between a stored configuration and one of now → both values as JSON, or "absent"."""

    result: dict[str, tuple[str, str]]
    how: dict[str, tuple[str, str]]
    where: dict[str, tuple[str, str]]


def config_json(config: Any) -> dict[str, Any]:
    """A configuration, a dataclass, as JSON keeps it: tuples become lists."""
    return json.loads(json.dumps(to_dict(config)))


def seed_folders(workdir: Path) -> list[Path]:
    """Folders of single seeds in the folder of a run over several."""
    return sorted(path for path in workdir.glob("seed*") if path.name[4:].isdigit() and path.is_dir())


def newest_checkpoint(workdir: Path) -> str:
    """Where a run would go on from, in words, without a look into it; of several seeds the last that has a checkpoint."""
    for folder in [*reversed(seed_folders(workdir)), workdir]:
        steps = [int(path.name) for path in (folder / CHECKPOINTS).glob("*") if path.name.isdecimal()]
        if steps:
            return f"the last checkpoint of {folder} is of step {max(steps)}"
    return f"{workdir} has no checkpoint yet"


def changes(stored: Mapping[str, Any], record: Record) -> Changes:
    """What differs between a stored configuration, from JSON, and that of a record."""
    old, new = _flatten(record.complete(stored)), _flatten(record.config)
    shown = [{key: json.dumps(value) for key, value in flat.items()} for flat in (old, new)]
    found = Changes({}, {}, {})
    for key in dict.fromkeys([*old, *new]):
        there, now = (values.get(key, "absent") for values in shown)
        if there != now:
            kind = found.how if _among(key, record.how) else found.where if _among(key, record.where) else found.result
            kind[key] = there, now
    return found


def check_same_config(
    workdir: Path, stored: Mapping[str, Any], record: Record, folders: Iterable[Path] | None = None
) -> None:
    """Refuse a folder of another result.

    Where a text lies is compared only if no fingerprint of it was kept: the fingerprint says more (:func:`check_text`).

    Args:
      workdir: the folder.
      stored: the configuration that it holds, from JSON.
      record: the one that it should hold.
      folders: those with the fingerprint; ``workdir`` by default.

    Raises:
      CheckpointError: names every key that differs, and how to start from these weights.
    """
    found = changes(stored, record)
    different = dict(found.result)
    if found.where and not trained_texts([workdir] if folders is None else folders):
        different |= found.where
    if not different:
        return
    named = "; ".join(f"{key}: there {there}, now {now}" for key, (there, now) in different.items())
    weights = _weights_of(workdir)
    begin = "" if weights is None else f" and --config.train.init_from={shlex.quote(str(weights))} to start from its weights"
    raise CheckpointError(
        f"{workdir} holds a run of another configuration: {named}. Use another --workdir{begin}, or the configuration that made it to go on "
        "with it; nothing was changed"
    )


def _weights_of(workdir: Path) -> Path | None:
    """The run that has weights to start from: of a folder of one seed that of all seeds; None if nothing was saved."""
    run = workdir.parent if workdir in seed_folders(workdir.parent) else workdir
    folders = [folder / CHECKPOINTS for folder in (workdir, *seed_folders(workdir)) if (folder / CHECKPOINTS).is_dir()]
    return run if any(path.name.isdecimal() for folder in folders for path in folder.iterdir()) else None


def _among(key: str, names: frozenset[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def finished(workdir: Path, record: Record) -> dict[str, Any] | None:
    """The results of a run that came to its end; None of any other, which may be begun or gone on with here.

    Raises:
      CheckpointError: if results, record or metrics of the folder are of something else.
    """
    metrics = workdir / METRICS
    if metrics.exists() and metrics.stat().st_size and not (workdir / RUN).exists():
        raise CheckpointError(f"{metrics} is not of this run, which has no {RUN} yet; move it, or use another --workdir")
    for name, kind in ((RESULTS, _Results), (RUN, RunFile)):
        if (workdir / name).exists():
            stored = read_json(workdir / name)
            if not isinstance(stored, dict) or not isinstance(stored.get("config"), dict):
                raise CheckpointError(f"{workdir / name} is not of a training run; move it, or use another --workdir")
            read_record(workdir / name, kind)
            check_same_config(workdir, stored["config"], record)
    if not (workdir / RESULTS).exists():
        return None
    return {key: value for key, value in read_json(workdir / RESULTS).items() if key != SELF}


def trained_texts(folders: Iterable[Path]) -> dict[Path, str]:
    """The fingerprint of the text that each folder was trained on; folders without one are left out.

    Raises:
      CheckpointError: if they differ, or a record cannot be read.
    """
    texts = {}
    for folder in folders:
        text = read_run(folder).text if (folder / RUN).exists() else None
        if text is not None:
            texts[folder] = text
    first = next(iter(texts), None)
    for folder, text in texts.items():
        if text != texts[first]:
            raise CheckpointError(
                f"{first} and {folder} were trained on different texts: their fingerprints are {texts[first]} and {text}, so their scores "
                "cannot be compared, and what validates one may have trained the other. Move one of them away"
            )
    return texts


def check_text(folder: Path, before: str | None, now: str | None) -> None:
    """Refuse another text than a folder was trained on: the files of a configuration's path may have changed since.

    Raises:
      CheckpointError: names both fingerprints.
    """
    if before not in (None, now):
        raise CheckpointError(
            f"{folder} holds a run on another text: its fingerprint is {before}, and that of the files now is {now}. Restore the files or "
            "the tokenizer, or use another --workdir; nothing was changed"
        )


def read_json(path: Path) -> Any:
    """Read a JSON file of a run.

    Raises:
      CheckpointError: if it is not JSON.
    """
    return _read(path, parse_json)


def read_record(path: Path, schema: type[_Schema]) -> _Schema:
    """Read a JSON file of a run that must hold what its schema says.

    Raises:
      CheckpointError: names the first thing that is wrong with it.
    """
    return _read(path, lambda content: parse(content, schema))


def read_run(workdir: Path) -> RunFile:
    """Read ``run.json`` of a folder.

    Raises:
      CheckpointError: if it is missing or damaged, or a file that it names is not what was written.
    """
    run = read_record(workdir / RUN, RunFile)
    for name, digest in run.file_digests.items():
        if not (workdir / name).exists():
            continue  # whoever needs it says so
        if _read(workdir / name, lambda content: hashlib.sha256(content).hexdigest()) != digest:
            raise DamagedError(workdir / name, "it is not what was written: its digest is another one")
    return run


def _read(path: Path, parser: Callable[[bytes], Any]) -> Any:
    try:
        return parser(path.read_bytes())
    except (OSError, RecordError) as error:
        raise unreadable(path, error) from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file of a run, whole or not at all, from process 0, with a digest of itself.

    Raises:
      CheckpointError: if it cannot be written.
    """
    stored = json.loads(json.dumps(value))
    write_text(path, json.dumps({**stored, SELF: digest_of(stored)}, indent=2) + "\n")


def text_digest(content: str) -> str:
    """What tells whether a file that :func:`write_text` wrote is still the same."""
    return hashlib.sha256(content.encode()).hexdigest()


def write_text(path: Path, content: str) -> None:
    """As :func:`write_json`, of any text."""
    if jax.process_index() != 0:
        return
    try:
        write_whole(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror}. Use another --workdir") from error


def unreadable(path: Path, error: Exception) -> DamagedError:
    """The error of a file of a run that cannot be read, with its remedy."""
    reason = str(error).strip().partition("\n")[0][:300]
    return DamagedError(path, reason if isinstance(error, RecordError) else f"{type(error).__name__}: {reason}")


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
