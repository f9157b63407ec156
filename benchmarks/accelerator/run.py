"""Run one part after another, each in a process of its own: a kernel that hangs, or spoils its device's context, takes no other with it."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import parts as _parts
from benchmarks.accelerator.part import Part, Settings, write_json

ROOT = Path(__file__).resolve().parents[2]
_GRACE = 5.0
"""Seconds between a part's end and that of its process, for what it still has to write."""
_END = 5.0
"""Seconds kept for the end of the whole."""

Start = Callable[[str, Settings, float], str]
"""(name, settings, seconds) → why it was ended; empty if it ended by itself."""


def all_parts() -> dict[str, Part]:
    """Every part by name, in order."""
    names = [module.name for module in pkgutil.iter_modules(_parts.__path__)]
    found = {name: importlib.import_module(f"{_parts.__name__}.{name}").PART for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1].place))


def run(parts: Mapping[str, Part], settings: Settings, minutes: float, start: Start | None = None) -> dict[str, Any]:
    """Run parts within a time.

    A part may take its share, and what those before it left of theirs.

    Args:
      parts: by name, in order.
      settings: what was asked for.
      minutes: for all of them.
      start: how a part is run; in a process of its own if it is not given.

    Returns:
      What ``summary.json`` holds: under "parts" the status of each ("done", "failed", "left out"), and why.
    """
    start = start or in_a_process
    begin, shares = time.monotonic(), sum(part.minutes for part in parts.values())
    until, summary = 0.0, {"minutes": minutes, "tiny": settings.tiny, "parts": {}}
    for name, part in parts.items():
        until += max(0.0, minutes * 60 - _END) * part.minutes / shares
        available = until - (time.monotonic() - begin)
        least = 0.0 if settings.tiny else part.least
        path = settings.out / f"{name}.json"
        print(f"{name}: at most {max(0.0, available):.0f} s", flush=True)
        if available <= least:
            why = f"{max(0.0, available):.0f} s left, at least {least:.0f} s needed"
            write_json(path, {"part": name, "status": "left out", "why": why, "rows": [], "left_out": []})
        else:
            path.unlink(missing_ok=True)
            _settle(path, name, start(name, settings, available))
        found = json.loads(path.read_text(encoding="utf-8"))
        outcome = {key: found[key] for key in ("status", "why", "error", "seconds") if key in found}
        summary["parts"][name] = outcome | {"rows": len(found["rows"]), "left_out": found["left_out"]}
        summary["seconds"] = round(time.monotonic() - begin, 1)
        write_json(settings.out / "summary.json", summary)
    return summary


def status(summary: Mapping[str, Any]) -> int:
    """The exit status: 1 if a part failed."""
    return int(any(part["status"] == "failed" for part in summary["parts"].values()))


def lines(summary: Mapping[str, Any]) -> Sequence[str]:
    """What is printed at the end: a line a part, and one for each row that is left out."""
    found = []
    for name, part in summary["parts"].items():
        why = part.get("error") or part.get("why") or ""
        found.append(
            f"{name:12} {part['status']:9} {part.get('seconds', 0):6.1f} s  {part['rows']:3} rows  {why[:200]}".rstrip()
        )
        found += [f"  left out: {row['name']} ({row['why']})" for row in part["left_out"]]
    return found


def _settle(path: Path, name: str, ended: str) -> None:
    """A part that did not say how it ended has failed."""
    found = {"part": name, "rows": [], "left_out": []}
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
    if found.get("status") in ("done", "failed"):
        return
    write_json(path, found | {"status": "failed", "error": ended or "its process ended without a word"})


def in_a_process(name: str, settings: Settings, seconds: float) -> str:
    """Run a part in a process, and end that when its time is over."""
    command = [sys.executable, "-m", "benchmarks.accelerator.one", name, repr(seconds), json.dumps(settings.as_json())]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    kept = {
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # PyTorch needs memory of the same device
        "JAX_COMPILATION_CACHE_DIR": str(settings.scratch / "jax"),  # parts share programs
        "TORCHINDUCTOR_CACHE_DIR": str(settings.scratch / "inductor"),
        "TRITON_CACHE_DIR": str(settings.scratch / "triton"),
    }
    process = subprocess.Popen(command, cwd=ROOT, env={**kept, **os.environ, "PYTHONPATH": path}, start_new_session=True)
    try:
        code = process.wait(seconds + _GRACE)
        return f"its process ended with status {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds + _GRACE:.0f} s"
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a part's process and those that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
