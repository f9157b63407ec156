"""What the documents show runs, what they name exists, and every term is explained where it comes first."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bdh_jax.analysis.report.base import Finding
from bdh_jax.analysis.report.page import Answer, Page, render
from docs.tools import check, hooks, plain, report_figures
from docs.tools import figures as drawn
from tests.pages import write_files

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))]
GENERATED = {"reference/configuration.md", "reference/commands.md", "reference/api/index.md"}
TESTED_OUTSIDE = {"consolidation", "kernel", "model", "task", "trained_model", "write_rule"}
"""How-to pages that show whole files."""
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def text(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def shows_files(document: Path) -> bool:
    return re.search(r"```python\n# \w+\.py\n", text(document)) is not None


RUN_HERE = [d for d in DOCUMENTS if "```python" in text(d) and not shows_files(d) and d.name != "README.md"]


@pytest.mark.parametrize("document", RUN_HERE, ids=str)
def test_python_blocks_run(document):
    """One after another, as a reader would run them."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", text(document), re.DOTALL))
    exec(compile(code, str(document), "exec"), {"__name__": "document"})


def test_pages_that_show_files_are_run_by_a_test_of_their_own(tmp_path):
    pages = {document.stem for document in DOCUMENTS if shows_files(document)}
    assert pages == TESTED_OUTSIDE
    for page in pages:
        assert f'PAGE = "docs/how-to/{page}.md"' in (ROOT / "tests" / "outside" / f"test_{page}.py").read_text(
            encoding="utf-8"
        )
        assert write_files(f"docs/how-to/{page}.md", tmp_path)


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_paths_exist(document):
    generated = GENERATED | {hooks.page_of(module) for module in hooks.modules()}
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text(document), flags=re.DOTALL)
    for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)(?:#[^)]*)?\)", prose):
        target = ((ROOT / document).parent / link).resolve()
        assert target.exists() or target.relative_to(ROOT / "docs").as_posix() in generated, link
    for path in re.findall(r"\b(?:configs|benchmarks|tests|docs|bdh_jax)/[\w/]+\.(?:py|md|sh)\b", text(document)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_variants_exist(document):
    named = re.findall(r"configs/(\w+)\.py:([\w,]+)", text(document))
    named += re.findall(r"bdh (?:train|config|evaluate) (\w+):([\w,]+)", text(document))
    for name, variants in named:
        if variants != "VARIANT":
            source = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
            assert all(f'"{variant}"' in source for variant in variants.split(",")), variants


def test_commands_exist():
    from bdh_jax.commands._dispatch import commands

    for document in DOCUMENTS:
        for name in re.findall(r"(?:^|`)(?:bdh|python -m bdh_jax) ([a-z][a-z-]*)", text(document), re.MULTILINE):
            assert name in commands(), f"{document}: bdh {name}"


def test_the_readme_is_short():
    assert len(text(Path("README.md")).splitlines()) <= 130


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(Path("README.md")), re.DOTALL | re.MULTILINE)


def test_the_script_of_the_readme_is_short():
    (script,) = readme_blocks("python")
    code = [line for line in script.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(code) <= 14


def as_a_user(*arguments: str, folder: Path) -> str:
    """What Python prints with these arguments, without the settings that make tests fast to compile and slow to run."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
def test_the_readme_does_what_it_says(tmp_path):
    """Its training, then its script: what is recalled, forgotten and kept. Last digits and one fact of eight depend on rounding."""
    (command,) = re.findall(r"^bdh (train .*)$", text(Path("README.md")), re.MULTILINE)
    output = as_a_user("-m", "bdh_jax", *command.split(), folder=tmp_path)
    (table,) = (block for block in readme_blocks("") if block.startswith("set  "))
    head, _, *rows = table.splitlines()
    assert head in output
    for row in rows:
        name, *_, ceiling, ratio = row.split()
        (found,) = (line.split() for line in output.splitlines() if line.startswith(f"{name} "))
        assert found[-2] == ceiling
        assert float(found[-1]) == pytest.approx(float(ratio), abs=0.01)
    (script,) = readme_blocks("python")
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    output = as_a_user("script.py", folder=tmp_path)
    printed = [int(number) for number in re.findall(r": (\d) of 8", output)]
    assert len(printed) == 3
    assert printed[:2] == [8, 0]
    assert 6 <= printed[2] <= 8


# Glossary.

ALIASES = {"b, t, l, h, n, d, v": (), "f": ("F",), "k": ("K",), "s": ("S",)}
"""Terms that are looked for otherwise than by their own words: sizes are explained with the shapes they stand in."""


def glossary() -> dict[str, tuple[str, ...]]:
    """Term → the spellings to look for."""
    terms = re.findall(r"^### (.+)$", text(Path("docs/reference/glossary.md")), re.MULTILINE)
    return {term: ALIASES.get(term.lower(), (term,)) for term in terms}


def prose(markdown: str) -> str:
    """Without code, formulas, headings, tables' rules, and where links lead; a link itself stays as ⟦text⟧."""
    markdown = re.sub(r"```.*?```|<!--.*?-->|\$\$.*?\$\$|\$[^$\n]+\$", " ", markdown, flags=re.DOTALL)
    markdown = re.sub(r"^#+ .*$|^!\[.*$", " ", markdown, flags=re.MULTILINE)
    markdown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"⟦\1⟧", markdown)
    return re.sub(r"`[^`]*`", " ", markdown)


def explained(before: str, after: str) -> bool:
    """Whether a term stands in emphasis, which marks its definition, or in a link."""
    inside_link = before.rfind("⟦") > before.rfind("⟧")
    return (
        inside_link or bool(re.search(r"\*\S*$", before)) and bool(re.match(r"\S*\*", after)) or before.count("**") % 2 == 1
    )


def first_uses(markdown: str) -> dict[str, str]:
    """Term → its first use with what is around it, of those that are not explained there."""
    found = {}
    read = prose(markdown)
    for term, spellings in glossary().items():
        for spelling in spellings:
            flags = 0 if len(spelling) <= 3 else re.IGNORECASE
            first = re.search(rf"(?<![\w-]){re.escape(spelling)}(?:s|es|d)?(?![\w-])", read, flags)
            if first and not explained(read[: first.start()], read[first.end() :]):
                found[term] = read[max(0, first.start() - 60) : first.end() + 40]
    return found


def test_a_term_is_explained_where_the_readme_uses_it_first():
    assert first_uses(text(Path("README.md"))) == {}


def test_a_term_is_explained_where_the_tutorials_use_it_first():
    cells = [cell for path in NOTEBOOKS for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    assert first_uses("\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")) == {}


@pytest.mark.parametrize(
    ("markdown", "unexplained"),
    [
        ("It has **fast weights**, and fast weights fade.", set()),
        ("Its fast weights fade. **Fast weights** are a matrix.", {"Fast weights"}),
        ("The [ceiling](docs/reference/glossary.md#ceiling) is 1.", set()),
        ("`S` and S.", {"S"}),
        ("A *gate*; **addresses and rows** are told apart.", set()),
    ],
)
def test_first_uses_are_found(markdown, unexplained):
    assert set(first_uses(markdown)) == unexplained


# The site.


def test_every_public_name_has_a_page():
    modules = set(hooks.modules())
    names = hooks.public_names()
    assert {"bdh_jax.BDH", "bdh_jax.consolidation.row_topk", "bdh_jax.generation.prefill"} <= set(names)
    for name in names:
        assert name.rpartition(".")[0] in modules, name
    pages = hooks.pages_of_the_api()
    assert set(pages) == {hooks.page_of(module) for module in modules}
    assert all(f"::: {module}\n" in pages[hooks.page_of(module)] for module in modules)


def test_every_key_has_its_row():
    from bdh_jax.config.reference import sections
    from bdh_jax.experiment import load_experiment

    page = hooks.configuration()
    for name in ("nback", "lifelong:local", "text:tbptt"):
        for section in sections(load_experiment(name)):
            for key in section.keys:
                assert f"| `{key.name}` |" in page, key.name


def test_links_out_of_the_site_become_names():
    here = ROOT / "docs" / "how-to"
    kept = "[a](task.md) [b](../results/nback.md#x) [c](https://x.org) ![d](../layer.svg)"
    assert hooks.outside_links(kept, here) == kept
    assert hooks.outside_links("[benchmarks/](../../benchmarks/README.md)", here) == "benchmarks/ (`benchmarks/README.md`)"
    assert hooks.outside_links("[`configs/nback.py`](../../configs/nback.py)", here) == "`configs/nback.py`"
    assert hooks.outside_links("[t](../../notebooks/3_text.ipynb)", here) == "[t](../tutorials/3_text.ipynb)"
    there = ROOT / "notebooks"
    assert hooks.outside_links("[l](../docs/results/nback.md#a) [n](1_episode.ipynb)", there) == (
        "[l](../results/nback.html#a) [n](1_episode.html)"
    )


def test_a_link_or_anchor_that_is_not_there_is_found(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "index.html").write_text('<p id="here">')
    (tmp_path / "a.html").write_text(
        '<a href="folder/index.html#here"><a href="folder"><a href="#no"><a href="b.html"><a href="https://x.org"><img src="c.svg">'
    )
    assert check.broken_links(tmp_path) == ["a.html: #no", "a.html: b.html", "a.html: c.svg"]


def test_docstrings_are_made_plain():
    said = "See :func:`~bdh_jax.load`.\n\nArgs:\n  a, b: of both,\n    and more.\n  c: > 0.\n\nReturns:\n  x, y: two.\n"
    assert plain.plain(said) == (
        "See `bdh_jax.load`.\n\nArgs:\n  a: of both,\n    and more.\n  b: of both,\n    and more.\n  c: \\> 0.\n\nReturns:\n  x, y: two.\n"
    )


def test_every_figure_is_drawn_and_shown():
    shown = {name for document in DOCUMENTS for name in re.findall(r"figures/(\w+)\.svg", text(document))}
    stored = {path.name for path in (ROOT / "docs" / "results" / "figures").iterdir()}
    names = {*drawn.FIGURES, *report_figures.kept()}
    assert len(names) == len(drawn.FIGURES) + len(report_figures.kept())
    assert shown == names
    assert stored == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}


@pytest.mark.parametrize("name", report_figures.kept())
def test_a_figure_of_a_report_is_its_chart_with_its_title_and_caption(name):
    chart = report_figures.kept()[name]
    svg, png = report_figures.draw(chart)
    said = " ".join(re.sub(r"<[^>]+>", " ", svg).split())
    assert html.escape(chart["title"], quote=False) in said
    assert chart["caption"]
    assert chart["spec"]["data"]["values"]
    assert png.startswith(b"\x89PNG")


def test_a_chart_is_taken_out_of_a_report_with_what_stands_around_it():
    spec = {"mark": "point", "encoding": {"x": {"field": "x", "type": "quantitative"}}}
    said = ("A < b", "It is <5 %.", "", "The `x` & more.", "Words.")
    finding = Finding("one", *said, [{"x": 1.5}], spec)
    answer = Answer("first", "First", "Why?", [finding, dataclasses.replace(finding, name="two", title="Other")])
    report = render(Page("Inside", "Lead", {}, [answer], "Made."))
    taken = report_figures.take(report, "first-one")
    assert (taken["title"], taken["says"], taken["caption"]) == ("A < b", "It is <5 %.", "The x & more.")
    assert taken["spec"]["data"] == {"values": [{"x": 1.5}]}
    with pytest.raises(ValueError, match="no chart of 'first-three'"):
        report_figures.take(report, "first-three")


@pytest.mark.parametrize("name", drawn.FIGURES)
def test_a_figure_says_its_finding_and_its_units(name):
    """It is drawn of the tables as they are now."""
    figure = drawn.FIGURES[name]()
    for axes in figure.axes:
        assert axes.get_title(loc="left")
        assert axes.get_xlabel() or axes.get_shared_x_axes().get_siblings(axes) != [axes]
        assert len(axes.get_legend_handles_labels()[1]) <= 7
