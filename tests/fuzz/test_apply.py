"""Arguments of any kind for a model: what it cannot use is a ValueError or TypeError that names the argument, before anything is
computed; the rest gives arrays of the stated shapes, finite, that do not depend on how the tokens are cut into calls."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from bdh_jax import FastWeightConfig
from bdh_jax.models.base import Model
from bdh_jax.models.bdh import BDHConfig
from bdh_jax.models.gpt import GPTConfig
from tests.compiled import apply

QUICK, FULL = 10, 300
VOCAB, LENGTHS = 11, (1, 2, 4)
_BDH = BDHConfig(vocab_size=VOCAB, n_layer=2, d_model=8, n_head=2, n_neurons=16, dropout=0.1, dtype="float64", chunk_size=2)
CONFIGS = {
    "hebbian": _BDH,
    "delta and shift": dataclasses.replace(_BDH, attention="shift", fast=FastWeightConfig(rule="delta", synapse=True)),
    "mesa": dataclasses.replace(_BDH, fast=FastWeightConfig(rule="mesa", scope="shared", learning_rate=0.5)),
    "chunked": dataclasses.replace(_BDH, implementation="chunked", fast=FastWeightConfig(keep_gram=True)),
    "no fast weights": dataclasses.replace(_BDH, fast=FastWeightConfig(enabled=False)),
    "gpt": GPTConfig(vocab_size=VOCAB, n_layer=1, d_model=8, n_head=2, dtype="float64"),
}
NAMES = ("tokens", "fast", "valid", "reset", "write", "state", "collect")
ODD: list[Any] = [
    None,
    0,
    -1,
    1.5,
    float("nan"),
    "",
    "full",
    "code",
    b"x",
    [],
    [[]],
    [[1, 2], [3]],
    {},
    object(),
    True,
    ["[red]\n"],
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def _model(name: str) -> tuple[Model, dict[str, Any]]:
    model = CONFIGS[name].build()
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init_slow, jax.random.key(0))
    return model, jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)


@st.composite
def arrays(draw: st.DrawFn, shape: tuple[int, ...], mask: bool) -> Any:
    """Of the right kind or not quite: another shape, dtype or number."""
    random = np.random.default_rng(draw(st.integers(0, 99)))
    odd = draw(st.sampled_from(["", "", "", "", "", "", "shape", "dtype", "number"]))
    if odd == "shape":
        shape = draw(
            st.sampled_from([(), (0,), (2,), (0, 2), (2, 0), (1, 2, 3), (5, 1), (*shape, 1), shape[:1], shape[::-1]])
        )
    array = random.random(shape) < 0.5 if mask else random.integers(0, VOCAB, shape)
    if odd == "dtype":
        kinds = ["int8", "uint64", "int32", "float32", "float64", "complex64", "bool", "object", "U4", "datetime64[s]"]
        array = array.astype(draw(st.sampled_from(kinds)))
    elif odd == "number" and not mask and array.size:
        array = array.copy()
        array.flat[0] = draw(st.sampled_from([-1, VOCAB, 2**31, -(2**40)]))
    if draw(st.integers(0, 3)) == 0:
        return array.tolist()
    if array.dtype.kind in "biuf" and draw(st.booleans()):
        return jnp.asarray(array)
    return array


@st.composite
def states(draw: st.DrawFn, model: Model, batch: int) -> Any:
    """Of this model, another one, another batch, or with something about it that is wrong."""
    other = CONFIGS[draw(st.sampled_from(list(CONFIGS)))].build()
    made = model if draw(st.integers(0, 4)) or other.architecture.state(1) is None else other
    if made.architecture.state(1) is None:
        return None
    fast = made.init_fast(draw(st.sampled_from([batch] * 6 + [3])))
    leaves, structure = jax.tree.flatten(fast)
    how = draw(st.integers(0, 9))
    which = draw(st.integers(0, len(leaves) - 1))
    if how == 0:
        leaves[which] = draw(
            st.sampled_from([leaves[which].astype(jnp.float32), leaves[which][..., None], None, 3, "x", np.ones(2)])
        )
    elif how == 1:
        return draw(st.sampled_from([leaves, {"fast": fast}, (fast,), fast.layers]))
    return jax.tree.unflatten(structure, leaves)


def _apply(data: st.DataObject) -> None:
    model, slow = _model(data.draw(st.sampled_from(list(CONFIGS)), label="model"))
    batch, length = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from(LENGTHS))
    shape = (batch, length)
    given: dict[str, Any] = {"tokens": data.draw(arrays(shape, False), label="tokens")}
    for name in ("valid", "reset", "write"):
        if data.draw(st.integers(0, 2)) == 0:
            given[name] = data.draw(arrays(shape, True), label=name)
    if data.draw(st.booleans()):
        given["fast"] = data.draw(states(model, batch), label="fast")
    given["state"] = data.draw(st.sampled_from([*["full"] * 12, "none", "mean", *ODD[:6]]), label="state")
    if data.draw(st.integers(0, 3)) == 0:
        taps = st.lists(st.sampled_from(["code", "gate", "address", "decoded", "read"]), max_size=2)
        given["collect"] = data.draw(taps | taps.map(tuple), label="collect")
    if data.draw(st.integers(0, 9)) == 0:
        given[data.draw(st.sampled_from(NAMES))] = data.draw(st.sampled_from(ODD), label="odd")
    try:
        # The arguments are concrete, so that their values are looked at, and nothing is computed.
        out = jax.eval_shape(lambda slow: model.apply({"params": slow}, **given), slow)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert message.isprintable(), message
        assert any(name.removesuffix("s") in message for name in NAMES), message
        return
    batch, length = np.shape(given["tokens"])
    assert out.logits.shape == (batch, length, VOCAB)
    for tap in given.get("collect", ()):
        assert out.collected[tap].shape[:2] == (model.config.n_layer, batch)
    _compute(model, slow, given, data.draw(st.integers(1, max(1, length - 1)), label="cut"))


def _compute(model: Model, slow: Any, given: dict[str, Any], cut: int) -> None:
    arrays = {name: np.asarray(given[name]) for name in ("tokens", "valid", "reset", "write") if given.get(name) is not None}
    given = {"fast": given.get("fast"), **arrays}
    whole = apply(model, slow, **given | {"state": "full"})
    valid = given.get("valid", np.ones(given["tokens"].shape, bool))
    assert np.isfinite(np.asarray(whole.logits)[valid]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole.fast))
    if whole.fast is None or given["tokens"].shape[1] < 2:
        return
    fast, logits = given.pop("fast", None), []
    given["state"] = "full"
    for part in (slice(None, cut), slice(cut, None)):
        own = {name: value[:, part] if isinstance(value, np.ndarray) else value for name, value in given.items()}
        out = apply(model, slow, fast=fast, **own)
        fast, logits = out.fast, [*logits, out.logits]
    np.testing.assert_allclose(np.concatenate(logits, axis=1)[valid], np.asarray(whole.logits)[valid], rtol=1e-8, atol=1e-9)
    chex.assert_trees_all_close(fast, whole.fast, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("draws", [QUICK, pytest.param(FULL, marks=pytest.mark.full)])
def test_arguments(draws):
    seeded = settings(max_examples=draws, derandomize=True, deadline=None, database=None)
    seeded(given(data=st.data())(_apply))()
