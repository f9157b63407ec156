"""What pyproject.toml says of dependencies: each is used, and both ends of its range are ones that are tested."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from pathlib import Path

import yaml
from packaging.markers import Marker

from tests import oldest

ROOT = Path(__file__).parents[1]


def distributions_imported():
    """Names of the distributions of which a module of the package imports something, at any place."""
    modules = set()
    for path in (ROOT / "bdh_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.split(".")[0])
    providers = importlib.metadata.packages_distributions()
    return {plain(name) for module in modules for name in providers.get(module, ())}


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_imported():
    stated = {plain(match["name"]) for match in oldest.requirements()[""]}
    assert stated - distributions_imported() == {"jaxlib"}, "JAX imports its other half itself"
    assert {"jax", "chex", "absl-py"} <= stated


def test_the_oldest_versions_are_those_of_pyproject():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = oldest.constraints()
    assert "jax==0.10.2" in found
    for line in found:
        name, version = line.partition(";")[0].split("==")
        assert re.search(rf'"{re.escape(name)}(\[\w+\])?>={re.escape(version)}["; ,]', text), line
    names = [line.partition("==")[0] for line in found]
    assert len(names) == len(set(names)), "a library has two oldest versions"


def test_what_is_installed_lies_in_the_ranges():
    """So that a range whose upper end is below what a fresh environment gets is noticed."""
    for extra in ("", "plot", "text", "test"):
        for match in oldest.requirements()[extra]:
            if match["marker"] and not Marker(match["marker"].lstrip("; ")).evaluate():
                continue
            version = importlib.metadata.version(match["name"])
            assert numbers(version) >= numbers(match["oldest"]), match[0]
            assert match["below"] is None or numbers(version) < numbers(match["below"]), match[0]


def numbers(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4])


def test_every_part_of_the_nightly_run_has_a_job():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    parts = re.search(r"^nightly: (.*)$", makefile, re.MULTILINE)
    assert parts is not None
    assert workflow["jobs"]["nightly"]["strategy"]["matrix"]["target"] == parts[1].split()
