"""The core reads like the paper: few parameters a function; and every function of the library says what it takes and gives."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "bdh_jax").rglob("*.py"))
CORE = ("models", "fast_weights", "kernels")
MOST = 8
PUBLIC_OP = "fast_weight_scan"
"""Whose parameters are what a user may say of a scan; the forms beneath it take them in parts."""


def functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function of a file, nested ones and methods too, with the names it lies under, and whether its first parameter is the
    object or class that it belongs to."""

    def below(
        node: ast.AST, path: str, of_class: bool
    ) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
        for child in ast.iter_child_nodes(node):
            name = f"{path}.{child.name}" if hasattr(child, "name") and isinstance(child.name, str) else path
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in child.decorator_list)
                yield name, child, of_class and not static
                yield from below(child, name, False)
            else:
                yield from below(child, name, of_class or isinstance(child, ast.ClassDef))

    module = ".".join(file.relative_to(ROOT if file.is_relative_to(ROOT) else file.parent).with_suffix("").parts)
    yield from below(ast.parse(file.read_text(encoding="utf-8")), module, False)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> list[ast.arg]:
    """All of them but the one that the function is bound to."""
    given = function.args
    named = [*given.posonlyargs, *given.args][1 if bound else 0 :] + given.kwonlyargs
    return [*named, *(rest for rest in (given.vararg, given.kwarg) if rest is not None)]


def too_many(file: Path) -> list[str]:
    return [
        f"{name} takes {len(parameters(function, bound))}"
        for name, function, bound in functions(file)
        if len(parameters(function, bound)) > MOST and function.name != PUBLIC_OP
    ]


def not_annotated(file: Path) -> list[str]:
    found = []
    for name, function, bound in functions(file):
        found += [f"{name}: {p.arg}" for p in parameters(function, bound) if p.annotation is None]
        found += [f"{name}: what it returns"] if function.returns is None and function.name != "__init__" else []
    return found


@pytest.mark.parametrize("room", CORE)
def test_functions_of_the_core_have_few_parameters(room):
    files = [file for file in FILES if file.relative_to(ROOT / "bdh_jax").parts[0] == room]
    assert len(files) > 3
    assert [line for file in files for line in too_many(file)] == []


def test_every_function_is_annotated():
    assert len(FILES) > 90
    assert [line for file in FILES for line in not_annotated(file)] == []


def test_what_is_wrong_is_found(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(
        "def outer(a: int, *, b: int = 0, **rest) -> None:\n"
        "    def inner(a: int, b, c: int, d: int, e: int, f: int, g: int, h: int, *i: int): ...\n"
        "class Of:\n"
        "    def __init__(self, a: int): ...\n"
        "    def method(self, a: int, b: int, c: int, d: int, e: int, f: int, g: int, h: int) -> None: ...\n"
        "    @staticmethod\n"
        "    def static(a) -> None: ...\n"
        "    if True:\n"
        "        @property\n"
        "        def value(self): ...\n"
        "for_sorting = sorted([], key=lambda x: x)\n"
    )
    assert too_many(file) == ["wrong.outer.inner takes 9"]
    assert not_annotated(file) == [
        "wrong.outer: rest",
        "wrong.outer.inner: b",
        "wrong.outer.inner: what it returns",
        "wrong.Of.static: a",
        "wrong.Of.value: what it returns",
    ]
