"""What the documents show runs, and what they name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [path.relative_to(ROOT) for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))]


def text(document: Path) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if "```python" in text(d) and "how-to" not in d.parts], ids=str)
def test_python_blocks_run(document):
    """One after another, as a reader would run them. The files that how-to pages show are run by tests/outside."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", text(document), re.DOTALL))
    exec(compile(code, str(document), "exec"), {"__name__": "document"})


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_paths_exist(document):
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)\)", text(document))
    for link in links:
        assert ((ROOT / document).parent / link).exists(), link
    for path in re.findall(r"\b(?:configs|benchmarks|tests|docs|bdh_jax)/[\w/]+\.(?:py|md|sh)\b", text(document)):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_variants_exist(document):
    for name, variants in re.findall(r"configs/(\w+)\.py:([\w,]+)", text(document)):
        if variants != "VARIANT":
            source = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
            assert all(f'"{variant}"' in source for variant in variants.split(",")), variants
