"""What a part of the measurement is, and what it is given: its settings, its time, and a file that holds each result once it is there."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bdh_jax.config.whole_files import write_whole

_TRACE = 4000
"""Characters of a traceback that are kept, from its end."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What was asked for."""

    out: Path
    """Folder of the results."""
    scratch: Path
    """Folder that is gone afterwards: compiled programs, weights on their way from part to part."""
    tiny: bool = False
    """Sizes at which everything runs in seconds on a CPU. Such figures mean nothing."""
    official: Path | None = None
    """A checkout of the official PyTorch code."""
    text: Path | None = None
    """A file to train on."""

    def as_json(self) -> dict[str, Any]:
        """For :meth:`from_json`, in another process."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(self).items()}

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> Settings:
        """The settings of which :meth:`as_json` made ``values``."""
        paths = {name: Path(values[name]) for name in ("out", "scratch", "official", "text") if values[name] is not None}
        return Settings(**{**values, **paths})


class Part(NamedTuple):
    """A part of the measurement: a module of ``benchmarks.accelerator.parts`` with its ``PART``. Its name is that of the module."""

    place: int
    """Parts run in this order: what is worth most comes first."""
    minutes: float
    """Its share of the time, about what it takes on an H100."""
    least: float
    """Seconds without which it is not begun."""
    run: Callable[[Work], None]


class Work:
    """What a part is given to work with.

    Args:
      name: of the part.
      settings: what was asked for.
      seconds: how long the part may take.
      about: what is said of the machine and the code, at the head of its results.
    """

    def __init__(self, name: str, settings: Settings, seconds: float, about: Mapping[str, Any]):
        self.name, self.settings, self._seconds = name, settings, seconds
        self._start, self._path = time.monotonic(), settings.out / f"{name}.json"
        self._found: dict[str, Any] = {
            "part": name,
            "status": "running",
            "tiny": settings.tiny,
            **about,
            "notes": {},
            "rows": [],
            "left_out": [],
        }
        self._write()

    @property
    def tiny(self) -> bool:
        """Whether sizes are tiny."""
        return self.settings.tiny

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self._seconds - (time.monotonic() - self._start)

    @property
    def failed(self) -> list[str]:
        """Names of the rows that failed."""
        return [row["name"] for row in self._found["rows"] if "error" in row]

    def note(self, **values: Any) -> None:
        """Say something of the whole part."""
        self._found["notes"].update(values)
        self._write()

    def leave_out(self, name: str, why: str) -> None:
        """Say that a row is not there, and why."""
        self._found["left_out"].append({"name": name, "why": why})
        print(f"  {name}: left out, {why}", flush=True)
        self._write()

    def attempt(self, name: str, needed: float, row: Callable[[], Mapping[str, Any]]) -> bool:
        """Make a row of the results, and write it at once. One that fails does not take the others with it.

        Args:
          name: of the row.
          needed: seconds without which it is left out; nothing is, where sizes are tiny.
          row: gives its figures.

        Returns:
          Whether it is there.
        """
        if not self.tiny and self.left < needed:
            self.leave_out(name, f"{max(0.0, self.left):.0f} s left, about {needed:.0f} s needed")
            return False
        begin = time.monotonic()
        try:
            figures = dict(row())
        except Exception as error:
            figures = said_of(error)
        if self.tiny:
            figures.pop("claim_holds", None)
        figures["took_seconds"] = round(time.monotonic() - begin, 2)
        self._found["rows"].append({"name": name, **figures})
        shown = ", ".join(f"{key} {_short(value)}" for key, value in figures.items() if _is_short(value))
        print(f"  {name}: {shown}", flush=True)
        self._write()
        return "error" not in figures

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Run the part in the block: how it ended is written, whatever happens."""
        end: dict[str, Any] = {"status": "done"}
        try:
            yield
            if self.failed:
                end = {"status": "failed", "error": f"{len(self.failed)} rows failed: {'; '.join(self.failed)}"}
        except Exception as error:
            end = {"status": "failed", **said_of(error)}
        self._found.update(end)
        self._write()

    def _write(self) -> None:
        self._found["seconds"] = round(time.monotonic() - self._start, 1)
        write_json(self._path, self._found)


def said_of(error: Exception) -> dict[str, str]:
    """What is kept of an error."""
    return {"error": f"{type(error).__name__}: {error}"[:_TRACE], "trace": traceback.format_exc()[-_TRACE:]}


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file whole or not at all."""
    write_whole(path, json.dumps(values, indent=1, default=float) + "\n")


def _is_short(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) or isinstance(value, str) and len(value) < 200


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
