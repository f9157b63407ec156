"""Docstrings are made plain before the site's generator reads them."""

from __future__ import annotations

from typing import Any

import griffe

from docs.tools.plain import plain


class Docstrings(griffe.Extension):
    """Runs over every object that is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of one object before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = plain(obj.docstring.value)
