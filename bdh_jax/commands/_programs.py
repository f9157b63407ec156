"""Compiled programs that are kept from one command to the next, so that only the first waits for the compiler."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import filelock
import jax

LARGEST = 2**30
"""Bytes of all programs together; those that were not used for longest go first."""
_LEAST_SECONDS = 0.3
"""What compiles faster is not kept: a training compiles dozens of such programs, in no time each."""
_WAITS = 5
"""Seconds for another command to look into the folder."""
_LOGGER = logging.getLogger("bdh_jax")
_SET_BY_USERS = ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE")


def keep_programs() -> Path | None:
    """Let JAX keep what it compiles in the user's cache folder: ``$XDG_CACHE_HOME`` or ``~/.cache``, and there ``bdh_jax/jax``.

    Every command does this; ``import bdh_jax`` never does. Nothing is changed where JAX was told where to keep programs, or not to,
    by a variable of the environment or ``jax.config``.

    Returns:
      The folder; None where JAX was told already or nothing can be written there, which costs time and is no error.
    """
    config: Any = jax.config  # its attributes are made while JAX starts
    told = any(name in os.environ for name in _SET_BY_USERS)
    if told or config.jax_compilation_cache_dir is not None or not config.jax_enable_compilation_cache:
        return None
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        # JAX holds this lock whenever it looks into a folder that has a limit, and where there are no locks it would warn of every program.
        with tempfile.TemporaryFile(dir=folder), filelock.FileLock(folder / ".lockfile", timeout=_WAITS):
            pass
    except (OSError, RuntimeError) as error:  # the second where there is no home
        _LOGGER.debug("compiled programs are not kept: %s", error)
        return None
    settings = {
        "jax_compilation_cache_max_size": LARGEST,
        "jax_persistent_cache_min_compile_time_secs": _LEAST_SECONDS,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def cache_folder() -> Path:
    """Where compiled programs are kept, whether or not they are.

    Raises:
      RuntimeError: if this user has no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative one is to be ignored (XDG Base Directory Specification).
    return (named if named.is_absolute() else Path.home() / ".cache") / "bdh_jax" / "jax"
