"""Names and shapes of the published weights, there and back (``tests/test_golden.py`` has the published outputs)."""

import numpy as np
import pytest

from bdh_jax import BDH
from bdh_jax.interop import from_pathway, to_pathway
from tests.compiled import apply


def published():
    rng = np.random.default_rng(0)
    shapes = {"embed.weight": (7, 4), "encoder": (2, 4, 6), "encoder_v": (2, 4, 6), "decoder": (12, 4), "lm_head": (4, 7)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_configuration_is_read_from_the_shapes():
    weights = published() | {"attn.freqs": np.zeros(6)}  # a buffer of the rotary embedding is no weight
    config, slow = from_pathway(weights, n_head=2, n_layer=3, dropout=0.0)
    assert (config.vocab_size, config.d_model, config.n_head, config.n_neurons) == (7, 4, 2, 12)
    assert (config.n_layer, config.dropout, config.fast.enabled) == (3, 0.0, False)
    assert from_pathway(published())[0].n_layer == 6
    logits = apply(BDH(config), slow, np.zeros((1, 3), np.int32)).logits
    assert logits.shape == (1, 3, 7)


def test_every_weight_goes_where_it_belongs():
    weights = published()
    _, slow = from_pathway(weights)
    head, neuron, width = 1, 4, 2
    assert slow["embed"][5, 3] == weights["embed.weight"][5, 3]
    assert slow["encoder"][width, head, neuron] == weights["encoder"][head, width, neuron]
    assert slow["encoder_v"][head, width, neuron] == weights["encoder_v"][head, width, neuron]
    assert slow["decoder"][head, neuron, width] == weights["decoder"][head * 6 + neuron, width]
    assert slow["lm_head"][3, 5] == weights["lm_head"][3, 5]


def test_there_and_back_is_exact_and_a_copy():
    weights = published()
    _, slow = from_pathway(weights)
    back = to_pathway(slow | {"synapse": np.ones((2, 2, 6, 4))})
    assert back.keys() == weights.keys()
    for name, array in weights.items():
        np.testing.assert_array_equal(back[name], array)
        assert back[name].dtype == array.dtype
    for array in slow.values():
        array += 1
    np.testing.assert_array_equal(weights["embed.weight"], published()["embed.weight"])
    np.testing.assert_array_equal(weights["encoder"], published()["encoder"])
    np.testing.assert_array_equal(weights["decoder"], published()["decoder"])


def test_what_is_no_bdh_is_refused_by_name():
    weights = published()
    with pytest.raises(ValueError, match=r"missing \['encoder_v'\], unknown \['encoder_w'\]"):
        from_pathway({"encoder_w" if name == "encoder_v" else name: array for name, array in weights.items()})
    with pytest.raises(ValueError, match=r"n_head=4, but encoder has shape \(2, 4, 6\), that is 2 heads"):
        from_pathway(weights, n_head=4)
    with pytest.raises(ValueError, match=r"decoder has shape \(12, 5\); with encoder \(2, 4, 6\) it must be \(12, 4\)"):
        from_pathway(weights | {"decoder": np.zeros((12, 5))})
    with pytest.raises(ValueError, match=r"encoder has shape \(4, 12\); expected \[H, D, N\]"):
        from_pathway(weights | {"encoder": np.zeros((4, 12))})


def test_a_head_tied_to_the_embedding_is_its_transpose(caplog):
    weights = published()
    del weights["lm_head"]
    _, slow = from_pathway(weights)
    np.testing.assert_array_equal(slow["lm_head"], weights["embed.weight"].T)
    assert "no lm_head: it is taken to be tied" in caplog.text
    _, slow = from_pathway(weights | {"lm_head.weight": 2 * weights["embed.weight"]})
    np.testing.assert_array_equal(slow["lm_head"], 2 * weights["embed.weight"].T)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    weights = published()
    weights["decoder"][3, 2] = value
    with pytest.raises(ValueError, match=rf"decoder holds 1 values that are not finite, such as {value} at \(3, 2\)"):
        from_pathway(weights)
    with pytest.raises(ValueError, match="encoder is int64; weights are floats"):
        from_pathway(published() | {"encoder": np.ones((2, 4, 6), np.int64)})
