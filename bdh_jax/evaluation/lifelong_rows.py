"""Rows of the lifelong benchmark that are done, in a file: after an interruption the same command measures only the rest.

A row is taken from the file only for the same streams, weights, code and settings.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import bdh_jax
from bdh_jax.config import ConfigError
from bdh_jax.evaluation.learners import Contestant, Slow
from bdh_jax.evaluation.lifelong_result import LifelongConfig, Row
from bdh_jax.generation import slow_hash


class FinishedRows:
    """The file, read when this is made and written after every row."""

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False):
        """Read the file, if it is there.

        Args:
          path: of the file.
          settings: what else decides a row: all that :func:`settings_of` gives, and more. JSON types.
          overwrite: forget a file that cannot be read or holds rows of other settings.

        Raises:
          ConfigError: if the file cannot be read, or holds rows of other settings, and ``overwrite`` is false.
        """
        self._path, self._settings = path, json.loads(json.dumps(settings))
        self._entries: list[dict[str, Any]] = []
        if not path.exists():
            return
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            before, entries = stored["settings"], stored["rows"]
            different = sorted(key for key in {*before, *self._settings} if before.get(key) != self._settings.get(key))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if overwrite:
                return
            raise ConfigError(
                f"{path} should hold rows of an interrupted run and cannot be read: move or delete it, or pass --overwrite"
            ) from error
        if different and not overwrite:
            raise ConfigError(
                f"{path} holds {len(entries)} rows of an interrupted run, which differs from this one in {', '.join(different)}: finish "
                "that one, name another folder with --out, or pass --overwrite to forget its rows"
            )
        self._entries = [] if different else entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, contestant: Contestant, config: LifelongConfig, given: float | None, rate_of: float | None) -> Row | None:
        """The row of a contestant, or None if it is not there.

        Args:
          contestant: its row; a function of your own has none, since its code is not known here.
          config: the sizes.
          given: the rate that was given; None if it was to be chosen.
          rate_of: of a contestant that takes the rate of another one, that rate.
        """
        wanted = _key(contestant.name, config, given)
        for entry in self._entries if contestant.own is None else ():
            if entry["key"] == wanted and (not contestant.rate_of or entry["row"]["rate"] == rate_of):
                return Row.from_dict(entry["row"])
        return None

    def add(self, contestant: Contestant, config: LifelongConfig, given: float | None, row: Row) -> None:
        """Keep a row.

        Raises:
          ConfigError: if the file cannot be written.
        """
        if contestant.own is not None:
            return
        self._entries.append({"key": _key(contestant.name, config, given), "row": row.to_dict()})
        temporary = self._path.with_name(self._path.name + ".tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"settings": self._settings, "rows": self._entries}), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be written: {error.strerror}; name another folder with --out") from error

    def delete(self) -> None:
        """Remove the file, once the rows stand in the results."""
        self._path.unlink(missing_ok=True)


def settings_of(slows: Sequence[Slow]) -> dict[str, Any]:
    """What decides a row beside the benchmark's configuration: weights, code, versions and device.

    Args:
      slows: parameter trees.
    """
    code = hashlib.sha256()
    for file in sorted(Path(bdh_jax.__file__).parent.rglob("*.py")):
        code.update(file.read_bytes())
    device = jax.devices()[0]
    return {
        "weights": [slow_hash(slow) for slow in slows],
        "code": code.hexdigest()[:16],
        "jax": jax.__version__,
        "device": f"{device.platform} {device.device_kind}",
    }


def _key(name: str, config: LifelongConfig, given: float | None) -> list[Any]:
    sizes = dataclasses.asdict(config)
    del sizes["reference"]  # which changes the table only
    return [name, given, json.loads(json.dumps(sizes))]
