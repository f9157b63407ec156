"""One part, in this process: ``python -m benchmarks.accelerator.one NAME SECONDS SETTINGS``. For :mod:`benchmarks.accelerator.run`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

import jax

from bdh_jax.commands._allocator import keep_freed_memory
from bdh_jax.runs.provenance import describe_start
from benchmarks.accelerator.part import Settings, Work
from benchmarks.accelerator.run import ROOT, all_parts


def about() -> dict[str, Any]:
    """Device, versions, commit, and a hash of the code, which tells a copy without its history apart."""
    start = {name: value for name, value in describe_start(0, 0).items() if name not in ("step", "seed", "command")}
    try:
        start["versions"]["torch"] = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        start["versions"]["torch"] = None
    return {**start, "code": code_hash(ROOT)}


def code_hash(root: Path) -> str:
    """SHA-256 of the modules of the package and of these benchmarks, with their paths."""
    digest = hashlib.sha256()
    for folder in ("bdh_jax", "benchmarks/accelerator"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def run_here(name: str, settings: Settings, seconds: float) -> str:
    """Run a part in this process."""
    part = all_parts()[name]
    work = Work(name, settings, seconds, about())
    with work.going_on():
        part.run(work)
        memory = jax.local_devices()[0].memory_stats() or {}
        work.note(peak_bytes=memory.get("peak_bytes_in_use"))
    return ""


if __name__ == "__main__":
    keep_freed_memory()
    run_here(sys.argv[1], Settings.from_json(json.loads(sys.argv[3])), float(sys.argv[2]))
