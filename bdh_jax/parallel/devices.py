"""Whether JAX has the devices that it is asked for."""

from __future__ import annotations

import os

import jax

from bdh_jax.config import ConfigError

_EXTRAS = {"cuda": "cuda", "gpu": "cuda", "tpu": "tpu"}


def check_devices() -> None:
    """Start JAX on its devices.

    Several processes join each other before that (``jax.distributed.initialize``).

    Raises:
      ConfigError: if there are none of the kind that ``JAX_PLATFORMS`` names.
    """
    try:
        jax.devices()
    except Exception as error:  # JAX documents none; a missing CUDA is an AssertionError without a text
        asked = os.environ.get("JAX_PLATFORMS", "")
        reason = str(error).strip().partition("\n")[0].partition(" (set JAX_PLATFORMS")[0]
        extra = next((_EXTRAS[name] for name in asked.lower().split(",") if name in _EXTRAS), None)
        install = (
            f', or install what it needs, pip install -e ".[{extra}]", on a machine that has such a device' if extra else ""
        )
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: JAX cannot compute on that here ({reason or 'its plugin or device is missing'}); unset the variable, or "
            f"set JAX_PLATFORMS=cpu{install}"
        ) from error
