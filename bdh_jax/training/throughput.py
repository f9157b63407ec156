"""How well a machine is used: model flops, their share of the peak, and the most memory that was taken.

Axis letters: T time, L layer, K neurons over all heads, D model width, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import sys

import jax

from bdh_jax.models.config import BDHConfig, ModelConfig

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


def training_flops_per_token(config: ModelConfig, length: int) -> int:
    """Flops that a training step needs for a token: six for each multiply-add of the forward pass, recomputation not counted.

    BDH multiplies 3·D·K + T·K numbers a layer (encoder, encoder_v, decoder; scores of the attention) and T·K more with fast weights;
    a GPT (4 + 2·width_factor)·D² + 2·T·D. Both V·D for the logits. The whole T × T square is counted, as most others do. For the
    recurrent rules the count is that of the Hebbian one.

    Args:
      config: of the model.
      length: T.
    """
    width, layers = config.d_model, config.n_layer
    if isinstance(config, BDHConfig):
        neurons = config.n_neurons
        layer = 3 * width * neurons + (2 if config.fast.enabled else 1) * length * neurons
    else:
        layer = (4 + 2 * config.width_factor) * width**2 + 2 * length * width
    return 6 * (layers * layer + config.vocab_size * width)


def peak_flops(config: ModelConfig, devices: list[jax.Device]) -> float | None:
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
