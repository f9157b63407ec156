"""One table a kind of thing: what exists, by name, and a user's own as ``module:name``."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from bdh_jax.config.base import ConfigError, shown
from bdh_jax.config.files import import_attribute

T = TypeVar("T")


class Table(Generic[T]):
    """Name → entry of one kind, such as the write rules or the tasks. Adding an entry is adding a file to a package.

    Every module of the package that has the attribute contributes. The modules are imported at the first look-up, so a table may
    stand in a module that they import.

    Args:
      kind: what an entry is called in messages: "write rule".
      package: whose modules are looked through, those that begin with "_" aside.
      attribute: what a module's entry is called. The entry is named after the module; a mapping gives several, and a tuple of
        functions or classes too, each under its own name.
      check: called with an entry of a user's own; raises :class:`ConfigError` for what is none of this kind.
    """

    def __init__(self, kind: str, *, package: str, attribute: str, check: Callable[[Any], None] | None = None):
        self._kind, self._package, self._attribute, self._check = kind, package, attribute, check
        self._entries: dict[str, T] | None = None

    def names(self) -> tuple[str, ...]:
        """The names of all entries, in the order of modules."""
        return tuple(self._found())

    def __contains__(self, name: object) -> bool:
        return name in self._found()

    def get(self, name: object, where: str) -> T:
        """The entry of a name.

        Args:
          name: one of :meth:`names`, or ``module:name`` of a user's own.
          where: the key that holds the name, for messages: "model.fast.rule".

        Raises:
          ConfigError: for a name that does not exist, a module that cannot be imported or lacks it, or what ``check`` refuses.
        """
        if isinstance(name, str) and ":" in name:
            entry = import_attribute(name, where)
            try:
                if self._check is not None:
                    self._check(entry)
            except ConfigError as error:
                raise ConfigError(f"{where}={name!r}: {error}") from None
            return entry
        entries = self._found()
        if not isinstance(name, str) or name not in entries:
            close = difflib.get_close_matches(str(name), entries, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"{where}={shown(name)} is not a {self._kind}.{hint} Valid names: {', '.join(entries)}; or module:name for your own"
            )
        return entries[name]

    def _found(self) -> dict[str, T]:
        if self._entries is None:
            entries: dict[str, T] = {}
            for info in pkgutil.iter_modules(importlib.import_module(self._package).__path__):
                if info.name.startswith("_"):
                    continue
                module = importlib.import_module(f"{self._package}.{info.name}")
                for name, entry in self._contributed(module, info.name).items():
                    if name in entries:
                        raise ValueError(f"two modules of {self._package} have a {self._kind} called {name!r}")
                    entries[name] = entry
            self._entries = entries
        return self._entries

    def _contributed(self, module: Any, name: str) -> Mapping[str, T]:
        if not hasattr(module, self._attribute):
            return {}
        found = getattr(module, self._attribute)
        if isinstance(found, Mapping):
            return found
        # Exactly a tuple: an entry may be a named one.
        return {entry.__name__: entry for entry in found} if type(found) is tuple else {name: found}
