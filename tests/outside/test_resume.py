"""The page on resuming with other settings, docs/how-to/resume.md, as it stands."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from tests.pages import ROOT, commands
from tests.processes import run_text

PAGE = "docs/how-to/resume.md"


def shown() -> list[str]:
    """The lines of output that the page shows."""
    blocks = re.findall(r"```text\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With the first command's run as one killed after step 10 leaves it."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "configs").symlink_to(ROOT / "configs")
    first, *_ = commands(PAGE)
    status, _, errors = run_text(*first, folder=folder)
    assert status == 0, errors
    (folder / "runs" / "first" / "results.json").unlink()
    shutil.rmtree(folder / "runs" / "first" / "checkpoints" / "20")
    return folder


def test_the_commands_do_what_the_page_says(folder):
    _, resume, refused, init, seeds = commands(PAGE)
    resumed, message = shown()
    status, _, errors = run_text(*resume, folder=folder)
    assert status == 0, errors
    assert resumed in errors
    status, output, errors = run_text(*refused, folder=folder)
    assert (status, output) == (2, "")
    assert errors.strip().splitlines()[-1] == message
    for command in (init, seeds):
        status, _, errors = run_text(*command, folder=folder)
        assert status == 0, errors
    origins = {
        name: json.loads((folder / "runs" / name / "run.json").read_text())["init_from"]
        for name in ("longer", "seeds/seed3", "seeds/seed5")
    }
    assert {name: (origin["folder"], origin["step"]) for name, origin in origins.items()} == {
        "longer": ("runs/first", 20),
        "seeds/seed3": ("runs/first", 10),
        "seeds/seed5": ("runs/first", 10),
    }
