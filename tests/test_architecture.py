"""docs/explanation/architecture.md says what is there: its rooms, its arrows, and the file and symbol of every answer."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "bdh_jax"
EVERYWHERE = {"config", "console", "types"}
"""Rooms that all others import: they are drawn without arrows."""


def answers():
    """Question → file → symbols, of the page's last table."""
    table = PAGE.split("## Where to find")[1]
    rows = re.findall(r"^\| (?!where is|-)([^|]+) \| (.+) \|$", table, re.MULTILINE)
    found = {}
    for question, answer in rows:
        named = re.findall(r"`([^`]+)`", answer)
        files: dict[str, list[str]] = {}
        for name in named:
            if "/" in name:
                files[name] = []
            else:
                files[next(reversed(files))].append(name)
        found[question] = files
    return found


def symbols(path):
    """Names that a file defines, and those of its classes' members."""
    found = set()

    def add(body, prefix):
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef) and not prefix:
                add(node.body, f"{node.name}.")
            targets = (
                node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            )
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    add(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return found


def test_the_page_answers_what_a_reader_asks():
    questions = " ".join(answers())
    for asked in (
        "the write",
        "the causal mask",
        "add a write rule",
        "a checkpoint holds",
        "become loss",
        "on a mesh",
        "a command starts",
    ):
        assert asked in questions


@pytest.mark.parametrize("question", answers())
def test_each_answer_is_there_and_needs_two_files_at_most(question):
    files = answers()[question]
    assert 1 <= len(files) <= 2
    for file, names in files.items():
        assert (ROOT / file).is_file(), file
        assert names, f"no symbol of {file} is named"
        assert set(names) <= symbols(ROOT / file), f"{file} has no {sorted(set(names) - symbols(ROOT / file))}"


def arrows():
    """The drawn arrows: room → rooms."""
    found = {}
    for left, right in re.findall(r"^ +([\w &]+) --> ([\w &]+)$", PAGE, re.MULTILINE):
        for room in left.split(" & "):
            found.setdefault(room.strip(), set()).update(right.split(" & "))
    return found


def reachable(room, drawn):
    found, ahead = set(), [room]
    while ahead:
        for other in drawn.get(ahead.pop(), ()):
            if other not in found:
                found.add(other)
                ahead.append(other)
    return found


def rooms():
    found = (path for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py")
    return {path.stem for path in found if not path.stem.startswith("__")}


def imports():
    """Room → the other rooms that its files import."""
    found = {}
    for room in rooms():
        files = (PACKAGE / room).rglob("*.py") if (PACKAGE / room).is_dir() else [PACKAGE / f"{room}.py"]
        imported = set()
        for file in files:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                modules = []
                if isinstance(node, ast.ImportFrom):
                    modules = [f"{node.module}.{name.name}" for name in node.names]
                elif isinstance(node, ast.Import):
                    modules = [name.name for name in node.names]
                imported |= {module.split(".")[1] for module in modules if module.startswith("bdh_jax.")}
        found[room] = (imported & rooms()) - {room} - EVERYWHERE
    return found


def test_the_rooms_drawn_are_the_rooms_there_are():
    drawn = arrows()
    assert set(drawn).union(*drawn.values()) | EVERYWHERE == rooms()
    described = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (?!.*`bdh_jax/)", PAGE, re.MULTILINE)
    assert {name for cell in described for name in re.findall(r"\w+", cell)} == rooms()


def test_what_a_room_imports_is_drawn():
    drawn = arrows()
    missing = {room: sorted(others - reachable(room, drawn)) for room, others in imports().items()}
    assert {room: others for room, others in missing.items() if others} == {}


def test_what_is_drawn_is_imported():
    real = imports()
    assert {room: sorted(others - real[room]) for room, others in arrows().items() if others - real[room]} == {}


def test_no_arrow_leads_back():
    drawn = arrows()
    assert [room for room in drawn if room in reachable(room, drawn)] == []


def test_the_linter_holds_the_order_that_is_drawn():
    """Every arrow points to a lower layer of the contract, which has every room."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    depth = {room.strip(): number for number, layer in enumerate(layers) for room in layer.split("|")}
    assert set(depth) == rooms()
    for room, others in arrows().items():
        assert all(depth[room] < depth[other] for other in others), room


def test_each_kind_of_contributing_points_at_its_place():
    kinds = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Kinds, and their rule")[1]
    rules = re.findall(r"^- \*\*(.+?)\*\*(.+?)(?=\n- |\n\n)", kinds, re.MULTILINE | re.DOTALL)
    assert len(rules) >= 10
    for kind, rule in rules:
        files = re.findall(r"`((?:bdh_jax|tests)/[\w/]+(?:\.py)?)`(?:: ((?:`[\w.]+`(?:, )?)+))?", rule)
        assert files, kind
        for file, names in files:
            assert (ROOT / file).exists(), f"{kind}: {file}"
            missing = set(re.findall(r"`([^`]+)`", names)) - (symbols(ROOT / file) if names else set())
            assert not missing, f"{kind}: {file} has no {sorted(missing)}"


def test_an_exception_from_the_types_names_its_rule_and_its_reason():
    """``make lint`` lets nothing else pass: pyright looks at no other kind of comment."""
    found = {
        f"{path.relative_to(ROOT)}:{number}": line
        for path in [*PACKAGE.rglob("*.py"), *(ROOT / "configs").glob("*.py")]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"#\s*(pyright|type|mypy):", line)
    }
    allowed = re.compile(r"# pyright: ignore\[report\w+(, report\w+)*\] - \w.{7,}$")
    assert [place for place, line in found.items() if not allowed.search(line)] == []
    assert found
    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pyright"] == {
        "include": ["bdh_jax"],
        "typeCheckingMode": "standard",
        "enableTypeIgnoreComments": False,
    }


def entries(room):
    """Modules of a room that are entries of its table: they have a CONFIG."""
    return {f"bdh_jax.{room}.{path.stem}" for path in (PACKAGE / room).glob("*.py") if "CONFIG" in symbols(path)}


def imported(path):
    """Modules that a file names in its imports, and what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_training_the_experiment_and_the_sweep_know_no_particular_task_or_model():
    particular = entries("models") | entries("tasks")
    assert {"bdh_jax.models.bdh", "bdh_jax.models.gpt", "bdh_jax.tasks.nback", "bdh_jax.tasks.text"} <= particular
    for path in [*(PACKAGE / "training").rglob("*.py"), PACKAGE / "experiment.py", PACKAGE / "sweep.py"]:
        assert not imported(path) & particular, path


BUILT_ON = {"bdh_jax.models.latent": {"bdh_jax.models.bdh"}}
"""Model → the one that it is, with something added: a subclass, whose weights and state are the other's."""


def test_one_model_does_not_know_another():
    models = entries("models")
    for model in models:
        path = PACKAGE / "models" / f"{model.rpartition('.')[2]}.py"
        assert imported(path) & (models - {model}) == BUILT_ON.get(model, set()), path
