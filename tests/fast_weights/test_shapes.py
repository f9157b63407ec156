"""What is printed of a state or an output has shapes and dtypes, and no numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bdh_jax import BDH, BDHConfig, FastWeightConfig
from bdh_jax.fast_weights.shapes import shapes
from bdh_jax.generation.sampling import prefill
from tests.compiled import apply, init

MODEL = BDH(
    BDHConfig(vocab_size=32, n_layer=5, d_model=16, n_head=2, n_neurons=64, dropout=0.0, fast=FastWeightConfig(rule="mesa"))
)


@pytest.fixture(scope="module")
def slow():
    return init(MODEL, 0)


def test_an_output_prints_its_shapes(slow):
    output = apply(MODEL, slow, np.zeros((2, 3), np.int32), collect=("code",))
    printed = str(output)
    assert printed == repr(output)
    for expected in (
        "logits=float32[2, 3, 32]",
        "layers=5 × LayerState(",
        "S=float32[2, 2, 32, 16]",
        "gram=float32[2, 64, 64]",
        "position=int32[2]",
        "collected={'code': float32[5, 2, 2, 3, 32]}",
    ):
        assert expected in printed
    for absent in ("losses", "None", "previous_code", "array("):
        assert absent not in printed
    assert len(printed.splitlines()) < 25
    assert max(map(len, printed.splitlines())) <= 80
    assert str(output.activity) == (
        "Activity(\n  strength=float32[5, 2, 2, 32],\n  energy=float32[5, 2, 2, 32],\n  count=float32[2]\n)"
    )
    assert "fast=FastState(" in str(prefill(MODEL, slow, [[1, 2]]))


def test_it_prints_what_is_traced_or_only_a_shape(slow):
    printed = []
    jax.eval_shape(lambda slow: printed.append(str(MODEL.apply({"params": slow}, jnp.zeros((2, 3), int)).fast)), slow)
    assert "layers=5 × LayerState(" in printed[0]
    assert printed == [str(jax.eval_shape(lambda: MODEL.init_fast(2)))]


def test_neighbours_that_differ_are_told_apart():
    small, large = jnp.zeros(2), jnp.zeros((3, 1), bool)
    assert shapes((small, small, large, "text", None)) == "(2 × float32[2], bool[3, 1], 'text', None)"
    assert shapes([small]) == "(float32[2])"
    assert shapes({"a": {}, "b": (large, large)}) == "{'a': {}, 'b': 2 × bool[3, 1]}"
