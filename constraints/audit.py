"""Look for known vulnerabilities in the versions of constraints/: ``make audit``.

    python constraints/audit.py
    python constraints/audit.py --snapshot                 without the network
    python constraints/audit.py --update=CHECKOUT          of https://github.com/pypa/advisory-database: makes the snapshot anew

Asks the service that pip-audit knows. Where that is out of reach, the advisories of advisories.json are compared instead: those of the
packages in constraints/, as of the date that is printed. Exit status 1 if a version is affected, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

FOLDER = Path(__file__).resolve().parent
SNAPSHOT = FOLDER / "advisories.json"


def pinned(path: Path) -> dict[str, Version]:
    """Package → the version that a file of constraints names."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            found[canonicalize_name(requirement.name)] = Version(specifier.version)
    return found


def affected(version: Version, advisory: dict[str, Any]) -> bool:
    """Whether an advisory is about this version: it lies in a range, [introduced, fixed), or is named."""
    for introduced, fixed in advisory["ranges"]:
        if Version(introduced) <= version and (fixed is None or version < Version(fixed)):
            return True
    return str(version) in advisory["versions"]


def by_snapshot(paths: list[Path]) -> Iterator[str]:
    """What the snapshot says of these files, a line for each version that is affected."""
    advisories = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["advisories"]
    for path in paths:
        for name, version in pinned(path).items():
            for advisory in advisories.get(name, []):
                if affected(version, advisory):
                    names = ", ".join([advisory["id"], *advisory["aliases"]])
                    yield f"{path.name}: {name} {version} is affected by {names}"


def by_service(paths: list[Path]) -> list[str] | None:
    """What pip-audit's service says; None if it cannot be asked."""
    found = []
    for path in paths:
        command = [
            sys.executable,
            "-m",
            "pip_audit",
            "--no-deps",
            "--disable-pip",
            "--format=json",
            "--progress-spinner=off",
        ]
        run = subprocess.run([*command, f"--requirement={path}"], capture_output=True, text=True)
        try:
            packages = json.loads(run.stdout)["dependencies"]
        except (ValueError, KeyError):
            return None
        if all("skip_reason" in package for package in packages):
            return None
        for package in packages:
            for advisory in package.get("vulns", []):
                found.append(f"{path.name}: {package['name']} {package['version']} is affected by {advisory['id']}")
    return found


def snapshot(checkout: Path, packages: set[str]) -> dict[str, Any]:
    """The advisories of these packages in a checkout of the database, with its commit and date."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(checkout), *arguments], capture_output=True, text=True, check=True).stdout

    commit, date = git("log", "-1", "--format=%H %cs").split()
    advisories: dict[str, list[dict[str, Any]]] = {}
    for path in git("ls-tree", "-r", "--name-only", "HEAD", "vulns").splitlines():
        name = canonicalize_name(Path(path).parent.name)
        if name not in packages:
            continue
        entry = yaml.safe_load(git("show", f"HEAD:{path}"))
        if "withdrawn" in entry:
            continue
        advisory: dict[str, Any] = {"id": entry["id"], "aliases": entry.get("aliases", []), "ranges": [], "versions": []}
        for part in entry["affected"]:
            ranges = [each for each in part.get("ranges", []) if each["type"] == "ECOSYSTEM"]
            for each in ranges:
                advisory["ranges"] += list(_intervals(each["events"]))
            if not ranges:
                advisory["versions"] += [
                    str(Version(version)) for version in part.get("versions", []) if _is_version(version)
                ]
        advisories.setdefault(name, []).append(advisory)
    return {
        "database": "github.com/pypa/advisory-database (CC-BY 4.0)",
        "commit": commit,
        "date": date,
        "advisories": advisories,
    }


def _intervals(events: list[dict[str, str]]) -> Iterator[tuple[str, str | None]]:
    introduced = None
    for event in events:
        if "introduced" in event:
            introduced = event["introduced"]
        elif "fixed" in event and introduced is not None:
            yield introduced, event["fixed"]
            introduced = None
    if introduced is not None:
        yield introduced, None


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def main() -> int:
    """Compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshot", action="store_true", help="do not ask the service")
    parser.add_argument("--update", type=Path, help="a checkout of the database to make the snapshot of")
    options = parser.parse_args()
    paths = sorted(path for path in FOLDER.glob("*.txt") if re.fullmatch(r"python3\.\d+\.txt", path.name))
    if options.update:
        if not (options.update / "HEAD").exists() and not (options.update / ".git").exists():
            print(f"error: {options.update} is no checkout; clone github.com/pypa/advisory-database", file=sys.stderr)
            return 2
        packages = {name for path in paths for name in pinned(path)}
        text = json.dumps(snapshot(options.update, packages), indent=1, sort_keys=True)
        SNAPSHOT.write_text(text + "\n", encoding="utf-8")
    found = None if options.snapshot else by_service(paths)
    if found is None:
        date = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["date"]
        print(f"the service was not asked, or cannot be reached: compared with the advisories of {date}")
        found = list(by_snapshot(paths))
    print("\n".join(found) or f"{len(paths)} files of constraints: no version is known to be vulnerable")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
