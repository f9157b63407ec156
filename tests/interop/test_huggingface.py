"""Hugging Face's layout: what is written is read back to the bit, under the names that ports look for."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from bdh_jax.fast_weights.config import FastWeightConfig
from bdh_jax.interop import WeightsError, read_huggingface, write_huggingface
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig

CONFIG = BDHConfig(vocab_size=16, n_layer=3, d_model=8, n_head=2, n_neurons=16, fast=FastWeightConfig(enabled=False))


@pytest.fixture
def written(tmp_path):
    slow = jax.tree.map(np.asarray, CONFIG.build().init_slow(jax.random.key(0)))
    write_huggingface(tmp_path / "hub", CONFIG, slow)
    return tmp_path / "hub", slow


def test_it_comes_back_to_the_bit(written):
    folder, slow = written
    config, read = read_huggingface(folder)
    assert config == CONFIG
    assert read.keys() == slow.keys()
    for name, array in slow.items():
        np.testing.assert_array_equal(read[name], array)


def test_names_and_shapes_are_those_that_ports_look_for(written):
    arrays = safetensors.numpy.load_file(written[0] / "model.safetensors")
    assert {name: array.shape for name, array in arrays.items()} == {
        "backbone.embed.weight": (16, 8),
        "backbone.encoder": (2, 8, 8),
        "backbone.encoder_v": (2, 8, 8),
        "backbone.decoder": (16, 8),
        "lm_head.weight": (16, 8),
    }
    values = json.loads((written[0] / "config.json").read_text())
    assert values["model_type"] == "bdh"
    assert (values["num_hidden_layers"], values["hidden_size"], values["num_attention_heads"]) == (3, 8, 2)
    assert (values["mlp_internal_dim_multiplier"], values["tie_word_embeddings"]) == (2, False)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (GPTConfig(vocab_size=16, d_model=8, n_head=2), "architecture 'gpt'"),
        (BDHConfig(d_model=8, n_head=2, n_neurons=16), "model.fast.enabled=True"),
        (BDHConfig(d_model=8, n_head=2, n_neurons=16, rope_period=4, fast=CONFIG.fast), "model.rope_period=4"),
        (BDHConfig(d_model=8, n_head=2, n_neurons=12, fast=CONFIG.fast), "n_neurons=12 is no multiple of model.d_model=8"),
        (BDHConfig(d_model=8, n_head=2, n_neurons=16, rope_theta=10.0, fast=CONFIG.fast), "model.rope_theta=10.0"),
    ],
)
def test_what_the_layout_has_no_place_for_is_refused(config, reason, tmp_path):
    with pytest.raises(WeightsError, match=reason):
        write_huggingface(tmp_path / "hub", config, {})
    assert not (tmp_path / "hub").exists()


def test_nothing_is_overwritten_and_what_does_not_fit_is_refused(written):
    folder, slow = written
    with pytest.raises(WeightsError, match=r"config\.json exists"):
        write_huggingface(folder, CONFIG, slow)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "hidden_size": 16}))
    with pytest.raises(WeightsError, match="they are not of one model"):
        read_huggingface(folder)
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "gpt2"}))
    with pytest.raises(WeightsError, match="'gpt2', not 'bdh'"):
        read_huggingface(folder)
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"config\.json cannot be read"):
        read_huggingface(folder)
