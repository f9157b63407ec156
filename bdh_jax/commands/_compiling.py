"""What is compiled, and how long it takes: JAX says so to whoever listens."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_LONG, _WORTH_A_LINE = 5.0, 1.0
"""Seconds from which a program has a message of its own, and from which all of them together have one."""
_LOGGER = logging.getLogger("bdh_jax")


@contextlib.contextmanager
def told_of_compilation() -> Iterator[None]:
    """Have messages for programs whose compilation takes long, and at the end of the block one for all of them."""
    programs: list[float] = []

    def hear(event: str, duration_secs: float, **details: Any) -> None:
        if event == _EVENT:
            programs.append(duration_secs)
            if duration_secs >= _LONG:
                _LOGGER.info("compiled %s in %.0f s", details.get("fun_name", "a program"), duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(hear)
    if sum(programs) >= _WORTH_A_LINE:
        _LOGGER.info("compiled %d programs in %.0f s", len(programs), sum(programs))
