"""Rows of the lifelong benchmark that are done, in a file: after an interruption the same command measures only the rest.

A row is taken from the file only for the same streams, weights, code and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bdh_jax.config import ConfigError
from bdh_jax.config.records import SELF, RecordError, Schema, digest_of, parse
from bdh_jax.config.whole_files import write_whole
from bdh_jax.lifelong.config import LifelongConfig
from bdh_jax.lifelong.contestants import Contestant
from bdh_jax.lifelong.result import Row
from bdh_jax.runs.fingerprint import slow_hash
from bdh_jax.types import Slow

_Layers = list[list[float | None]]


class _Row(Schema):
    """A row: what :meth:`bdh_jax.lifelong.result.Row.to_dict` gives, as far as it is read again."""

    name: str
    rate: float | None
    scores: dict[str, _Layers]
    course: dict[str, list[_Layers]]
    facts_so_far: list[list[int | float]]


class _File(Schema):
    """The file."""

    settings: dict[str, Any]
    rows: dict[str, _Row]
    digest: str | None = None


_LIBRARY = Path(__file__).resolve().parents[1]
_LOGGER = logging.getLogger("bdh_jax")


class FinishedRows:
    """The file, read when this is made and written after every row."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Read the file, if it is there.

        Args:
          path: of the file.
          settings: what decides all rows: what :func:`settings_of` gives, and more. JSON types.
          overwrite: forget a file that cannot be read or holds rows of other settings.

        Raises:
          ConfigError: if the file cannot be read, or holds rows of other settings, and ``overwrite`` is false.
        """
        self._path, self._settings = path, json.loads(json.dumps(settings))
        self._rows: dict[str, dict[str, Any]] = {}
        self._here: set[str] = set()  # keys of what this run took or added
        try:
            before, rows = _read(path)
            different = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
        except FileNotFoundError:
            return
        except (OSError, RecordError) as error:
            if overwrite:
                return
            raise ConfigError(
                f"{path} should hold rows of an interrupted run and cannot be read ({error}): move or delete it, or pass --overwrite"
            ) from error
        if different and not overwrite:
            raise ConfigError(
                f"{path} holds rows of an interrupted run ({len(rows)}), which differs from this one in {', '.join(different)}: finish "
                "that one, name another folder with --out, or pass --overwrite to forget its rows"
            )
        self._rows = {} if different else rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, contestant: Contestant, config: LifelongConfig, rate: float | None, **more: Any) -> Row | None:
        """The row of a contestant, or None if it is not there.

        Args:
          contestant: its row; a function of your own has none, since its code is not known here.
          config: the sizes.
          rate: that was given, or is that of another contestant; None if it was to be chosen.
          more: whatever else the row depends on.
        """
        key = _key(contestant, config, rate, more)
        if contestant.own is not None or key not in self._rows:
            return None
        self._here.add(key)
        return Row.from_dict(self._rows[key])

    def add(self, row: Row, contestant: Contestant, config: LifelongConfig, rate: float | None, **more: Any) -> None:
        """Keep a row. If the file cannot be written the log says so, since the measurement itself can go on.

        Args:
          row: what was measured.
          contestant: as of :meth:`get`, like all that follows.
          config: the sizes.
          rate: as there.
          more: as there.
        """
        if contestant.own is None:
            key = _key(contestant, config, rate, more)
            self._rows[key] = row.to_dict()
            self._here.add(key)
            self._write()

    def finish(self) -> int:
        """Forget the rows that this run took or added, once they stand in its results.

        Returns:
          How many rows of other runs are left. Without any the file is removed.
        """
        self._rows = {key: row for key, row in self._rows.items() if key not in self._here}
        if self._rows:
            self._write()
        elif jax.process_index() == 0:
            self._path.unlink(missing_ok=True)
        return len(self._rows)

    def _write(self) -> None:
        if jax.process_index() != 0:
            return
        content = {"settings": self._settings, "rows": self._rows}
        try:
            write_whole(self._path, json.dumps({**content, SELF: digest_of(content)}))
        except OSError as error:
            _LOGGER.warning(
                "%s cannot be written (%s): after an interruption, rows would be measured again", self._path, error.strerror
            )


def settings_of(slows: Sequence[Slow]) -> dict[str, Any]:
    """What decides a row beside the benchmark's configuration: weights, code, versions and device.

    Args:
      slows: parameter trees.
    """
    code = hashlib.sha256()
    for file in sorted(_LIBRARY.rglob("*.py")):
        code.update(file.read_bytes())
    device = jax.devices()[0]
    return {
        "weights": [slow_hash(slow) for slow in slows],
        "code": code.hexdigest()[:16],
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind}",
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    stored = parse(path.read_bytes(), _File)
    rows = {key: row.model_dump() for key, row in stored.rows.items()}
    for key, row in rows.items():
        try:
            Row.from_dict(row)
        except ValueError as error:  # lists of different lengths
            raise RecordError(f"rows.{key}: {error}") from None
    return stored.settings, rows


def _key(contestant: Contestant, config: LifelongConfig, rate: float | None, more: Mapping[str, Any]) -> str:
    sizes = dataclasses.asdict(config)
    del sizes["reference"]  # which changes the table only
    return json.dumps([contestant.name, contestant.rates, rate, sizes, more], sort_keys=True)
