"""What is compiled, and how long it takes: JAX says so to whoever listens."""

from __future__ import annotations

import logging
from typing import Any

import jax.monitoring

_EVENT = "/jax/core/compile/backend_compile_duration"
_SECONDS = 1.0
"""What is faster is not worth a line."""
_LOGGER = logging.getLogger("bdh_jax")


def tell_of_compilation() -> None:
    """Have a message for every program whose compilation takes more than a second."""
    jax.monitoring.register_event_duration_secs_listener(_tell)


def _tell(event: str, seconds: float, **details: Any) -> None:
    if event == _EVENT and seconds >= _SECONDS:
        _LOGGER.info("compiled %s in %.1f s", details.get("fun_name", "a program"), seconds)
