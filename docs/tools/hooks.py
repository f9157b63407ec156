"""What the site has beside the pages of ``docs/``: tutorials from ``notebooks/``, and pages that are made of the code itself.

MkDocs calls the functions ``on_…`` (``mkdocs.yml`` names this file). The others know nothing of MkDocs, and tests call them.
"""

from __future__ import annotations

import ast
import html
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bdh_jax"
API = "reference/api"
EXPERIMENTS = (
    "nback",
    "counter",
    "consolidation",
    "lifelong",
    "lifelong:aware",
    "text",
    "text:gpt",
    "slim",
    "tiny_bdh",
    "tiny_bdh:copy",
    "tiny_bdh:brackets",
    "tiny_bdh:new_rule",
    "tiny_bdh:brackets,gru",
    "mqar",
    "mqar:gla",
    "mqar:gated_deltanet",
    "mqar:mamba2",
    "mqar:forgetting",
    "mqar:compositional",
    "latent",
)
"""Whose parts together have every key of the library's own classes."""


_WRITTEN = tempfile.TemporaryDirectory()


def on_config(config: Any) -> Any:
    """Add the pages of the API to the navigation."""
    (reference,) = (part["Reference"] for part in config.nav if isinstance(part, dict) and "Reference" in part)
    (api,) = (entry["API"] for entry in reference if isinstance(entry, dict) and "API" in entry)
    api += [{module.removeprefix("bdh_jax."): page_of(module)} for module in modules()]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages and the notebooks."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = outside_links(notebook.read_text(encoding="utf-8"), notebook.parent)
        # A file of its own, since notebooks are read from their path.
        path = Path(_WRITTEN.name) / "tutorials" / notebook.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        files.append(File(f"tutorials/{notebook.name}", _WRITTEN.name, config.site_dir, config.use_directory_urls))
    return files


# Before the plugins, one of which makes pages of notebooks.
on_files.mkdocs_priority = 100  # type: ignore[attr-defined]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files that are no pages of the site become their names, and a number stays with its spread."""
    markdown = re.sub(r"(?<=\d) ?± ?(?=\d)", "\u00a0±\u00a0", markdown)
    source = ROOT / "docs" / page.file.src_uri
    return outside_links(markdown, source.parent) if source.is_file() else markdown


def on_post_build(config: Any) -> None:
    """Hold the site to what it promises: every public name has its place, and every link and anchor is there."""
    from docs.tools.check import broken_links, names_without_place

    site = Path(config.site_dir)
    problems = [f"no reference page has {name}" for name in names_without_place(site, public_names())]
    problems += broken_links(site)
    if problems:
        raise SystemExit("\n".join(["the site is not in order:", *problems]))


def outside_links(text: str, folder: Path) -> str:
    """Links of a page or notebook with those to files outside ``docs/`` turned into names, and those to pages that lie in it kept.

    Args:
      text: Markdown, or the JSON of a notebook.
      folder: it lies in, from which its links lead.
    """
    docs = ROOT / "docs"

    tutorials = docs / "tutorials"
    start = folder if folder.is_relative_to(docs) else tutorials

    def replaced(match: re.Match[str]) -> str:
        label, link, anchor = match["label"], match["link"], match["anchor"] or ""
        target = Path(os.path.normpath(folder / link))
        if target.is_relative_to(docs) and start == folder:
            return match[0]
        if target.parent == ROOT / "notebooks" and target.suffix == ".ipynb":
            target = tutorials / target.name
        if target.is_relative_to(docs):
            # MkDocs finds the page of a file for other pages, but not within notebooks.
            target = target if start == folder else target.with_suffix(".html")
            return f"[{label}]({os.path.relpath(target, start)}{anchor})"
        name = str(target.relative_to(ROOT))
        return f"{label} (`{name}`)" if label.strip("`") != name else f"`{name}`"

    pattern = r"(?<!!)\[(?P<label>[^\]\[]+)\]\((?P<link>(?!https?://|#|mailto:)[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    return re.sub(pattern, replaced, text)


def pages() -> dict[str, str]:
    """Path within the site's sources → Markdown, of all pages that are generated."""
    return pages_of_the_api() | {
        f"{API}/index.md": api_index(),
        "reference/configuration.md": configuration(),
        "reference/commands.md": commands(),
    }


def pages_of_the_api() -> dict[str, str]:
    """The page of every module."""
    return {page_of(module): f"::: {module}\n    options:\n      heading_level: 1\n" for module in modules()}


def modules() -> list[str]:
    """Every module of the package that is no one's private affair: neither it nor a folder above it begins with an underscore."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return sorted(names)


def page_of(module: str) -> str:
    """The page of a module within the site's sources."""
    return f"{API}/{module}.md"


def public_names() -> list[str]:
    """``module.name`` of every entry of an ``__all__`` in the package."""
    names = []
    for module in modules():
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                names += [f"{module}.{name}" for name in ast.literal_eval(node.value)]
    return names


def api_index() -> str:
    """Every module with the first line of its docstring, by room."""
    lines = [
        "# API",
        "",
        "Made of the docstrings. What most people need is in [`bdh_jax`](bdh_jax.md), "
        "[`bdh_jax.consolidation`](bdh_jax.consolidation.md) and [`bdh_jax.generation`](bdh_jax.generation.md); "
        "[the map of the rooms](../../explanation/architecture.md) says what is where.",
        "",
        "| module | |",
        "|---|---|",
    ]
    for module in modules():
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        line = (
            re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.split("\n\n")[0].replace("\n", " "))
            .replace("``", "`")
            .replace("|", "\\|")
        )
        lines.append(f"| [`{module}`]({module}.md) | {line} |")
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """Every key of a configuration, taken from the dataclasses."""
    from bdh_jax.config.reference import sections
    from bdh_jax.experiment import load_experiment

    lines = [
        "# Configuration keys",
        "",
        "Made of the dataclasses. Set a key with `--config.KEY=VALUE` on any command that takes an experiment; `bdh config NAME` shows the keys of "
        "one with its own values. Several values are separated by commas (`--config.seeds=0,1,2`), `None` is written out. A key that does not "
        "exist, a value of another type and a value out of range are errors.",
        "",
        "Defaults are those of the class; an experiment may set others.",
    ]
    seen: set[type] = set()
    for name in EXPERIMENTS:
        for section in sections(
            load_experiment(f"configs/{name.partition(':')[0]}.py" + (f":{name.partition(':')[2]}" if ":" in name else ""))
        ):
            if section.kind in seen:
                continue
            seen.add(section.kind)
            where = f"`{section.name}`: " if section.name else ""
            lines += ["", f"## {where}{section.kind.__name__}", "", _markdown(section.text), ""]
            lines += ["| key | default | type and range | |", "|---|---|---|---|"]
            for key in section.keys:
                accepts = f"{key.type}: {key.range}" if key.range else key.type
                lines.append(
                    " | ".join(
                        ["", f"`{key.name}`", f"`{_default(section.kind, key)!r}`", _cell(accepts), _cell(key.text)]
                    ).strip()
                    + " |"
                )
    return "\n".join(lines) + "\n"


def _default(kind: type, key: Any) -> Any:
    import dataclasses

    (field,) = (field for field in dataclasses.fields(kind) if field.name == key.name.rpartition(".")[2])
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else key.value


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text).replace("``", "`")
    return re.sub(r"`[^`]*`|<", lambda found: "&lt;" if found[0] == "<" else found[0], text)


def commands() -> str:
    """What ``--help`` says of every command."""
    from bdh_jax.commands._dispatch import commands as known

    lines = [
        "# Commands",
        "",
        "`bdh COMMAND` and `python -m bdh_jax COMMAND` are the same. An experiment is a name of `bdh list`, or a file of your own, with variants after a "
        "colon: `nback:text`, `mine.py:small`. What follows is what `--help` says.",
        "",
    ]
    lines += ["| command | |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {_cell(line)} |" for name, line in known().items()]
    for name, shown in zip(known(), _help_of(known()), strict=True):
        lines += ["", f"## `{name}` {{ #{name} }}", "", "```text", shown.strip(), "```"]
    return "\n".join(lines) + "\n"


def _help_of(names: Iterable[str]) -> list[str]:
    """Each in a process of its own, since commands share the names of flags."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    shown = []
    for name in names:
        arguments = [sys.executable, "-m", "bdh_jax", name, "--help"]
        done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
        if not done.stdout.strip():
            raise SystemExit(f"bdh {name} --help printed nothing: {done.stderr.strip()}")
        shown.append(html.unescape(done.stdout))
    return shown
