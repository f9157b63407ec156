"""How well a machine is used: model flops, their share of the peak, and the most memory that was taken.

Axis letters: T time, L layer, K neurons over all heads, D model width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import sys

import jax

from bdh_jax.models.base import ModelConfig

PEAK_FLOPS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
}
"""Start of a device's kind → dense bfloat16 flops a second, from the makers' data sheets (SXM versions of the GPUs). The first that
fits counts."""


def training_flops_per_token(config: ModelConfig, length: int) -> int | None:
    """Flops that a training step needs for a token: six for each multiply-add of the forward pass, recomputation not counted.

    Args:
      config: of the model, which counts its multiply-adds (``multiply_adds_per_token``).
      length: T.

    Returns:
      Flops, or None for a model that does not count.
    """
    multiply_adds = config.multiply_adds_per_token(length)
    return None if multiply_adds is None else 6 * multiply_adds


def peak_flops(
    config: ModelConfig,
    devices: list[jax.Device],  # pyright: ignore[reportInvalidTypeForm] - JAX assigns the name of this class
) -> float | None:
    """Flops a second of all devices together, or None where they are not known: they are for bfloat16 only."""
    if config.dtype != "bfloat16":
        return None
    kind = devices[0].device_kind
    peak = next((flops for start, flops in PEAK_FLOPS.items() if kind.startswith(start)), None)
    return None if peak is None else peak * len(devices)


def peak_memory() -> int | None:
    """The most bytes taken so far: of the fullest local device, or of this process where that is the CPU; None where neither is known."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if all(stats):
        return max(stat.get("peak_bytes_in_use", 0) for stat in stats) or None
    if jax.local_devices()[0].platform != "cpu" or importlib.util.find_spec("resource") is None:
        return None
    import resource  # not on Windows

    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
