"""Where a run comes from: versions, commit, device, command."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

_PACKAGES = ("bdh_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def describe_start(step: int, seed: int) -> dict[str, Any]:
    """Where and with what a run starts or resumes: time, versions, commit, device, command."""
    device = jax.devices()[0]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "step": step,
        "seed": seed,
        "command": sys.argv,
        "git": _git_commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "processes": jax.process_count(),
        "machine": platform.platform(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> dict[str, Any] | None:
    """Commit of the checkout this package is in, and whether files differ from it; None outside a checkout."""
    package = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # A virtual environment may lie inside a checkout of something else.
        if Path(git("rev-parse", "--show-toplevel")) != package:
            return None
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
