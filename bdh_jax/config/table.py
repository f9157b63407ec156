from __future__ import annotations
import importlib, pkgutil
from typing import Any, Generic, TypeVar
from bdh_jax.config.base import ConfigError

T = TypeVar("T")


class Table(Generic[T]):
    def __init__(self, kind, *, package, attribute, check=None):
        self.kind, self.package, self.attribute, self.check = kind, package, attribute, check
        self._entries = None

    def _all(self):
        if self._entries is None:
            package = importlib.import_module(self.package)
            self._entries = {}
            for info in pkgutil.iter_modules(package.__path__):
                module = importlib.import_module(f"{self.package}.{info.name}")
                if hasattr(module, self.attribute):
                    self._entries[info.name] = getattr(module, self.attribute)
        return self._entries

    def names(self):
        return tuple(self._all())

    def get(self, name, where):
        if isinstance(name, str) and ":" in name:
            module, _, attribute = name.partition(":")
            return getattr(importlib.import_module(module), attribute)
        if name not in self._all():
            raise ConfigError(
                f"{where}={name!r} is not one of {', '.join(map(repr, self.names()))}, or module:name of your own"
            )
        return self._all()[name]
