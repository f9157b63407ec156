"""Packages of the extra ``text``: imported, or missed by name."""

import warnings

import pytest

from bdh_jax.data.errors import DataError, text_package


def test_a_bar_that_nobody_draws_is_not_missed(tmp_path, monkeypatch):
    lines = (
        'warnings.warn("IProgress not found. Please update jupyter and ipywidgets.")',
        'warnings.warn("something else")',
    )
    (tmp_path / "draws_bars.py").write_text("\n".join(("import warnings", *lines)))
    monkeypatch.syspath_prepend(tmp_path)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert text_package("a test", "draws_bars").__name__ == "draws_bars"
    assert [str(warning.message) for warning in seen] == ["something else"]


def test_a_package_that_is_not_there_is_named_by_its_extra():
    with pytest.raises(DataError, match=r'a test needs a package that is not installed: pip install "bdh_jax\[text\]"'):
        text_package("a test", "no_such_package_anywhere")
