"""One table a kind of thing: what exists by name, and a user's own by ``module:attribute``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import Any

from bdh_jax.config.base import ConfigError


class Table:
    """Name → entry of one kind. Every module of a package that has the attribute contributes; modules are imported at the first look.

    Args:
      kind: what an entry is, for messages.
      package: where to look.
      attribute: of a module: one entry, which is named after the module, or a tuple of functions, which have names of their own.
    """

    def __init__(self, kind: str, package: str, attribute: str):
        self._kind, self._package, self._attribute = kind, package, attribute
        self._entries: dict[str, Any] = {}

    def names(self) -> tuple[str, ...]:
        """All names."""
        return tuple(self._found())

    def get(self, name: str, where: str) -> Any:
        """The entry of a name, or what ``module:attribute`` names.

        Args:
          name: one of :meth:`names`, or ``module:attribute``.
          where: the key that gives it, for messages.

        Raises:
          ConfigError: for a name that does not exist, or a module that cannot be imported or lacks the attribute.
        """
        if ":" in name:
            return load(name, where)
        entries = self._found()
        if name not in entries:
            close = difflib.get_close_matches(name, entries, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{where}={name!r}: this {self._kind} does not exist.{hint} Valid names: {', '.join(entries)}; or module:name for your own"
            )
        return entries[name]

    def _found(self) -> dict[str, Any]:
        if not self._entries:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__, f"{self._package}."):
                found = getattr(importlib.import_module(module.name), self._attribute, None)
                if isinstance(found, tuple):
                    self._entries |= {entry.__name__: entry for entry in found}
                elif found is not None:
                    self._entries[module.name.rpartition(".")[2]] = found
        return self._entries


def load(name: str, where: str) -> Any:
    """What ``module:attribute`` names.

    Raises:
      ConfigError: if the module cannot be imported or lacks the attribute.
    """
    module, _, attribute = name.partition(":")
    try:
        imported = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever a module of somebody else's does when it is imported
        raise ConfigError(
            f"{where}={name!r}: module {module!r} cannot be imported ({type(error).__name__}: {error}). It must lie on the Python path; "
            "the folder you start from does"
        ) from error
    if not hasattr(imported, attribute):
        raise ConfigError(f"{where}={name!r}: module {module!r} has no {attribute!r}")
    return getattr(imported, attribute)
