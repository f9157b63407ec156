"""The committed faults still apply to the code as it is; ``make mutate`` tries whether they are noticed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("mutations_run", Path(__file__).with_name("run.py"))
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)


def test_there_are_faults_and_each_is_of_another_kind():
    faults = run.all_faults()
    assert len(faults) >= 12
    assert len({fault.description for fault in faults}) == len(faults)


@pytest.mark.parametrize("fault", run.all_faults(), ids=lambda fault: fault.path.stem)
def test_the_patch_applies_and_names_tests_that_exist(fault):
    assert run.apply(fault.path, ROOT, check_only=True) == ""
    files = [argument.partition("::")[0] for argument in fault.tests if argument.startswith("tests/")]
    assert files
    assert all((ROOT / file).exists() for file in files)


def test_the_copy_leaves_out_what_was_trained_and_no_code():
    assert run.left_out(str(ROOT), ["runs", "docs", ".git", "bdh_jax.egg-info"]) == {"runs", ".git", "bdh_jax.egg-info"}
    for folder in ("bdh_jax", "tests"):
        assert run.left_out(str(ROOT / folder), ["runs", "__pycache__"]) == {"__pycache__"}
        assert (ROOT / folder / "runs").is_dir()


def test_a_patch_without_its_two_lines_is_refused(tmp_path):
    path = tmp_path / "x.patch"
    path.write_text("Fault: something\n--- a/x\n+++ b/x\n")
    with pytest.raises(ValueError, match="x.patch must begin with"):
        run.read(path)


def test_a_patch_that_does_not_apply_is_reported(tmp_path):
    path = tmp_path / "x.patch"
    path.write_text("--- a/pyproject.toml\n+++ b/pyproject.toml\n@@ -1,1 +1,1 @@\n-not there\n+neither\n")
    assert "patch does not apply" in run.apply(path, ROOT, check_only=True)
