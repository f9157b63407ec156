"""A folder as Hugging Face's transformers reads it: ``config.json`` and ``model.safetensors``.

The layout is that of github.com/jploski/bdh-transformers: model type "bdh", class ``BDHForCausalLM``, the published weights under
``backbone.`` and the head as a linear layer of its own, ``lm_head.weight`` [V, D]. It is the published model and nothing else: what goes
beyond that (fast weights, a sparse code, attention that forgets, rotary phases of its own) has no place there, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pydantic
import safetensors.numpy

from bdh_jax.config.records import RecordError, Schema, digest_of, parse
from bdh_jax.config.whole_files import whole_file, write_whole
from bdh_jax.interop.files import DIGEST, WeightsError, read_pathway
from bdh_jax.interop.pathway import to_pathway
from bdh_jax.models.base import ModelConfig
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.runs.fingerprint import digests

CONFIG, MODEL = "config.json", "model.safetensors"
_BACKBONE = "backbone."
_THETA = 65536.0


class _Config(Schema):
    """What is read of ``config.json``."""

    model_type: str
    num_hidden_layers: pydantic.PositiveInt
    hidden_size: pydantic.PositiveInt
    num_attention_heads: pydantic.PositiveInt
    mlp_internal_dim_multiplier: pydantic.PositiveInt
    vocab_size: pydantic.PositiveInt
    dropout: float = 0.1


def not_published(config: ModelConfig) -> str | None:
    """Why a model is not the published one, so that other programs would compute something else with its weights; None if it is."""
    if type(config) is not BDHConfig:  # a subclass computes something else
        return f"it is of the architecture {config.architecture!r}"
    different = {
        "model.fast.enabled=True": config.fast.enabled,
        f"model.attention={config.attention!r}": config.attention != "rope",
        f"model.attention_decay={config.attention_decay}": set(config.attention_decay) != {1.0},
        f"model.code_top_k={config.code_top_k}": config.code_top_k is not None,
        f"model.rope_theta={config.rope_theta}": config.rope_theta != _THETA,
        f"model.rope_period={config.rope_period}": config.rope_period not in (None, config.neurons_per_head),
        f"model.n_neurons={config.n_neurons} is no multiple of model.d_model={config.d_model}": config.n_neurons
        % config.d_model,
    }
    return next((reason for reason, there in different.items() if there), None)


def write_huggingface(folder: str | Path, config: ModelConfig, slow: Mapping[str, np.ndarray]) -> None:
    """Write ``config.json`` and ``model.safetensors`` of a model into a folder that has neither.

    Args:
      folder: is made if it is not there.
      config: of a BDH.
      slow: its weights.

    Raises:
      WeightsError: if the model is not the published one (:func:`not_published`), or a file is there or cannot be written.
    """
    folder, reason = Path(folder), not_published(config)
    if reason is not None or not isinstance(config, BDHConfig):
        raise WeightsError(
            f"{folder}: Hugging Face's layout holds the published BDH alone, and {reason}; export the run in its own layout"
        )
    for name in (CONFIG, MODEL):
        if (folder / name).exists():
            raise WeightsError(f"{folder / name} exists; name a new folder")
    arrays = {_BACKBONE + name: array for name, array in to_pathway(slow).items()}
    arrays["lm_head.weight"] = arrays.pop(f"{_BACKBONE}lm_head").T
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    values = {
        "architectures": ["BDHForCausalLM"],
        "model_type": "bdh",
        "num_hidden_layers": config.n_layer,
        "hidden_size": config.d_model,
        "num_attention_heads": config.n_head,
        "mlp_internal_dim_multiplier": config.n_neurons // config.d_model,
        "vocab_size": config.vocab_size,
        "dropout": config.dropout,
        "tie_word_embeddings": False,
        "torch_dtype": str(arrays["lm_head.weight"].dtype),
    }
    bare = {name.removeprefix(_BACKBONE): array for name, array in arrays.items()}
    try:
        write_whole(folder / CONFIG, json.dumps(values, indent=2) + "\n")
        with whole_file(folder / MODEL) as part:
            # What loads such a file looks for the format in its header.
            safetensors.numpy.save_file(arrays, part, {"format": "pt", DIGEST: digest_of(digests(bare))})
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written: {error.strerror}; name another folder") from error


def read_huggingface(folder: str | Path) -> tuple[BDHConfig, dict[str, np.ndarray]]:
    """Read a folder of that layout, of whoever wrote it.

    Args:
      folder: with ``config.json`` and ``model.safetensors``.

    Returns:
      As :func:`bdh_jax.interop.from_pathway`.

    Raises:
      WeightsError: if a file is missing or damaged, or they do not fit each other.
    """
    folder = Path(folder)
    try:
        values = parse((folder / CONFIG).read_bytes(), _Config)
    except (OSError, RecordError) as error:
        raise WeightsError(f"{folder / CONFIG} cannot be read ({error}); name a folder with a BDH in it") from error
    if values.model_type != "bdh":
        raise WeightsError(f"{folder / CONFIG} is of a model of the type {values.model_type!r}, not 'bdh'")
    config, slow = read_pathway(
        folder / MODEL, values.num_attention_heads, n_layer=values.num_hidden_layers, dropout=values.dropout
    )
    said = (values.vocab_size, values.hidden_size, values.mlp_internal_dim_multiplier * values.hidden_size)
    found = (config.vocab_size, config.d_model, config.n_neurons)
    if said != found:
        raise WeightsError(f"{folder}: {CONFIG} says V, D, K = {said}, and {MODEL} has {found}: they are not of one model")
    return config, slow
