from __future__ import annotations
import dataclasses, inspect
from bdh_jax.config.base import ConfigError


class Options(dict):
    def __hash__(self):
        return hash(frozenset(self.items()))


def options_of(kind, values, where, leave_out=()):
    names = (
        [f.name for f in dataclasses.fields(kind)]
        if dataclasses.is_dataclass(kind)
        else list(inspect.signature(kind).parameters)
        if kind
        else []
    )
    for name in values:
        if name not in names:
            raise ConfigError(f"{where} has no option {name!r}. Its options: {', '.join(names) or 'none'}")
    return dict(values)
