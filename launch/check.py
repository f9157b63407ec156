"""Check every file of this folder by what its system itself, or the best reader of it that can be installed, says: ``make lint``.

    *.sh, *.sbatch, .ci     shellcheck
    Dockerfile              hadolint
    compose.yaml            the schema of the Compose specification
    jobset_*.yaml           a schema of our own for the JobSet, Kubernetes' own for the Jobs in it
    skypilot.yaml           a schema of our own

And each says in its head what it does about command, image, storage, restart, watching and stopping. That the commands in them run is
tests/launch's to show.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
SAID = ("command", "image", "storage", "restart", "watch", "stop")
KUBERNETES = "1.33"
"""Version of the schema of Jobs."""


def faults() -> Iterator[str]:
    """What is wrong, a line each."""
    for path in sorted(path for path in FOLDER.iterdir() if path.is_file() and path.suffix not in (".py", ".md")):
        name = path.name
        if path.suffix in (".sh", ".sbatch"):
            yield from _said_by("shellcheck", path)
        elif name == "Dockerfile":
            yield from _said_by("hadolint", path)
        elif name == "compose.yaml":
            yield from _said_by("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
        elif name.startswith("jobset_"):
            yield from (f"{name}: {fault}" for fault in jobset_faults(yaml.safe_load(path.read_text(encoding="utf-8"))))
        elif name == "skypilot.yaml":
            yield from (
                f"{name}: {fault}" for fault in _schema_faults("skypilot", yaml.safe_load(path.read_text(encoding="utf-8")))
            )
        else:
            yield f"{name}: nothing here knows how to check it; say so in launch/check.py"
        missing = [word for word in SAID if f"\n# {word} " not in path.read_text(encoding="utf-8")]
        # An image is run by the other files: what restarts it, they say.
        missing = [word for word in missing if name != "Dockerfile" or word not in ("command", "restart")]
        if missing:
            yield f"{name}: its head does not say {', '.join(missing)}"
    for path in sorted(path for path in (ROOT / ".ci").iterdir() if path.read_bytes().startswith(b"#!/usr/bin/env bash")):
        yield from _said_by("shellcheck", path)


def jobset_faults(manifest: object) -> Iterator[str]:
    """What is wrong with a JobSet, and with the Jobs that it is made of."""
    yield from _schema_faults("jobset", manifest)
    if not isinstance(manifest, dict):
        return
    for job in manifest.get("spec", {}).get("replicatedJobs", []):
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **job.get("template", {})}
        try:
            kubernetes_validate.validate(whole, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{job.get('name')}: {'.'.join(map(str, error.path))}: {error.message}"


def _schema_faults(schema: str, manifest: object) -> Iterator[str]:
    rules = json.loads((FOLDER / "schemas" / f"{schema}.json").read_text(encoding="utf-8"))
    for error in jsonschema.Draft202012Validator(rules).iter_errors(manifest):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message}"


def _said_by(tool: str, *arguments: object) -> Iterator[str]:
    """What a tool that is installed beside this Python prints if it is not content."""
    found = subprocess.run([Path(sys.executable).parent / tool, *map(str, arguments)], capture_output=True, text=True)
    if found.returncode:
        yield (found.stdout + found.stderr).strip() or f"{tool} ended with status {found.returncode}"


if __name__ == "__main__":
    found = list(faults())
    print("\n".join(found) or "launch: nothing to complain of")
    sys.exit(bool(found))
