"""The configurations that the contract is checked on, with weights, tokens and a state to start from.

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import BDH, BDHConfig, FastState, FastWeightConfig
from tests import reference_model
from tests.contract.covering import covering

FACTORS = {
    # "shared" is the recurrent form with one S for two layers, which no other form has.
    "implementation": ("recurrent", "chunked", "parallel", "pallas_interpret", "shared"),
    "scope": ("layer", "shared"),  # shared by the only layer
    "rule": ("hebbian", "delta", "gated_delta", "longhorn", "oja"),
    "address": ("previous", "current"),
    "norm": ("none", "l2", "sum", "kwta", "centred"),
    "source": ("code", "gated", "gate"),
    "gradient": ("full", "stop"),
    "synapse": ("absent", "frozen", "trained"),
    "heads": (1, 2),
    "batch": (2, 1),  # one head of one example takes a shorter way
    "rates": ("fixed", "unit", "learned"),  # λ = η = 1 takes shorter ways than other numbers
    "attention": ("rope", "shift", "damped"),
    "masks": ("none", "valid", "reset", "both"),
}
LENGTH, WIDTH, NEURONS, VOCAB, CHUNK = 8, 8, 16, 18, 3
# Full float64 products and sums of up to T·K terms, a few of them on top of each other, divided by layer norms whose input is
# of order 0.1: √(T·K) · 2⁻⁵² · 10⁴.
EXACT = np.sqrt(LENGTH * NEURONS) * 2.0**-52 * 1e4


def layers(row: dict[str, Any]) -> int:
    """How many layers the model of a row has: two where they differ, or share something."""
    return 2 if row["scope"] == "layer" or row["implementation"] == "shared" else 1


def time_to_compile(row: dict[str, Any]) -> int:
    """Roughly, in units of one layer. The interpreted kernel is a program in itself."""
    return layers(row) * (2 if row["implementation"] == "pallas_interpret" else 1)


@functools.cache
def quick_rows() -> list[dict[str, Any]]:
    """Every pair of values of two factors in float64, what no factor has, and every value in bfloat16."""
    narrow = _narrow_rows()
    # In float64, too: gradients in bfloat16 are compared with those, which are compiled once.
    pairs = covering(FACTORS, 2, given=narrow, cost=time_to_compile)
    return [
        *({**row, "dtype": "float64"} for row in pairs),
        *_special_rows(),
        *({**row, "dtype": "bfloat16"} for row in narrow),
    ]


@functools.cache
def full_rows() -> list[dict[str, Any]]:
    """Every three values of three factors, and what no factor has, in float64."""
    threes = covering(FACTORS, 3, tries=5, cost=time_to_compile)
    return [*({**row, "dtype": "float64"} for row in threes), *_special_rows()]


def _narrow_rows() -> list[dict[str, Any]]:
    """As few rows as can hold every value of every factor."""
    narrow = []
    for index in range(max(len(values) for values in FACTORS.values())):
        row = {name: values[index % len(values)] for name, values in FACTORS.items()}
        if row["rule"] == "oja":
            # With "shift" this one is ill-conditioned: rounding nothing but the weights to 2⁻⁹ moves its gradient by a quarter.
            row["attention"] = "rope"
        narrow.append(row)
    return narrow


def _special_rows() -> list[dict[str, Any]]:
    """What no pair of factors has, in float64."""
    first = {name: values[0] for name, values in FACTORS.items()} | {"dtype": "float64"}
    # A shared S that is reset and written at the same token: only codes write there, as an episode's first gate is zero.
    rows = [first | {"implementation": "shared", "address": "current", "norm": "l2", "masks": "reset"}]
    # "limits" is the Hebbian rule with limits on S. It and "mesa" have the recurrent form only, one S a layer or one for both.
    for rule, norm, masks, implementation, gradient in (
        ("mesa", "l2", "both", "recurrent", "full"),
        ("mesa", "kwta", "reset", "shared", "stop"),
        ("limits", "none", "both", "recurrent", "full"),
        ("limits", "centred", "valid", "shared", "stop"),
    ):
        only = {"rule": rule, "norm": norm, "masks": masks, "implementation": implementation, "gradient": gradient}
        rows.append(first | only | {"scope": "shared", "heads": 2, "synapse": "trained"})
    # A gate before the Hebbian write, which goes through every form and the kernel as what is written, and weighs the sum of k ⊗ k
    # that is kept beside S.
    for implementation, norm, masks, gradient in (
        ("chunked", "none", "reset", "stop"),
        ("parallel", "sum", "valid", "full"),
        ("pallas_interpret", "l2", "none", "full"),
        ("shared", "kwta", "both", "full"),
    ):
        only = {
            "rule": "gated_hebbian",
            "implementation": implementation,
            "scope": "shared",
            "norm": norm,
            "masks": masks,
            "gradient": gradient,
        }
        rows.append(first | only | {"heads": 2, "synapse": "frozen"})
    # Heads with rates of their own are not merged into one, and what a rule predicts is a sum over them, token by token as well.
    own = {"implementation": "recurrent", "scope": "shared", "rule": "delta", "rates": "learned", "heads": 2}
    rows.append(first | own)
    return rows


def row_id(row: dict[str, Any]) -> str:
    """Name of a row in test reports."""
    return "-".join(str(value) for value in row.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration and the inputs it is checked with. Tokens are distinct, so that an embedding row is one token's."""

    row: dict[str, Any]
    model: BDH
    slow: dict[str, np.ndarray]
    fast: FastState
    tokens: np.ndarray
    valid: np.ndarray | None
    reset: np.ndarray | None
    thorough: bool

    @property
    def config(self) -> BDHConfig:
        return self.model.config

    @property
    def exact(self) -> bool:
        return self.config.dtype == "float64"

    @property
    def by_token(self) -> bool:
        """Whether the model goes token by token."""
        return self.row["implementation"] in ("recurrent", "shared") or self.row["rule"] in ("mesa", "limits")

    @property
    def starts_from_none(self) -> bool:
        """Whether to check a call without a state: of quick cases some of those that go token by token, where the model starts
        from a state of zeros then, and in float64 others without masks and with both."""
        return self.thorough or self.exact and self.row["masks"] in (("both",) if self.by_token else ("none", "both"))

    @property
    def masks(self) -> dict[str, np.ndarray | None]:
        """Arguments of ``apply`` and ``call``."""
        return {"valid": self.valid, "reset": self.reset}

    def valid_tokens(self) -> np.ndarray:
        """[B, T] bool."""
        return np.ones(self.tokens.shape, bool) if self.valid is None else self.valid

    @functools.cached_property
    def with_gradients(self):
        """``(slow, floats, tokens, fast, weights, valid, reset)`` to logits and final state, and the gradients of the mixture by
        slow weights and the floating leaves of the state, the others of which are ``fast``'s."""

        def number(slow, floats, tokens, fast, weights, valid, reset):
            fast = jax.tree.map(lambda leaf, new: leaf if new is None else new, fast, floats, is_leaf=lambda x: x is None)
            out = self._run()(slow, tokens, fast, valid, reset)
            return mixed(*out, weights), out

        def both(*arguments):
            gradients, out = jax.grad(number, argnums=(0, 1), has_aux=True)(*arguments)
            return out, gradients

        return jax.jit(both)

    @functools.cached_property
    def _applied(self):
        return {state: jax.jit(self._run(state)) for state in ("full", "mean", "none")}

    def _run(self, state="full"):
        def run(slow, tokens, fast, valid, reset):
            out = self.model.apply({"params": slow}, tokens, fast, valid=valid, reset=reset, state=state)
            return out.logits, out.fast

        return run

    def apply(self, slow, tokens, fast=None, *, valid=None, reset=None, state="full"):
        """(logits, fast) of ``model.apply``, as NumPy arrays: what checks do with them is not compiled."""
        return jax.device_get(self._applied[state](slow, tokens, fast, valid, reset))

    def call(self, tokens=None, fast=None, **masks):
        """(logits, fast) on this case's inputs, some of them changed perhaps, always by the same compiled program: the one that
        gives gradients as well."""
        return self.differentiate(tokens, fast, **masks)[0]

    def differentiate(self, tokens=None, fast=None, weights=None, **masks):
        """``with_gradients`` on this case's inputs, some of them changed perhaps, and random weights if none are given."""
        tokens, fast = self.tokens if tokens is None else tokens, self.fast if fast is None else fast
        masks = self.masks | masks
        floats = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, fast)
        weights = self.mixture if weights is None else weights
        return jax.device_get(self.with_gradients(self.slow, floats, tokens, fast, weights, masks["valid"], masks["reset"]))

    @functools.cached_property
    def mixture(self):
        """Fixed random weights of all outputs, so that one number depends on everything: logits and every leaf of the state."""
        rng = np.random.default_rng(2)
        logits = rng.normal(size=(*self.tokens.shape, VOCAB)) * self.valid_tokens()[..., None]
        return logits, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), self.fast)


def build(row: dict[str, Any], *, thorough: bool = False) -> Case:
    """Make a case from a row of factors.

    Args:
      row: name → value for each of ``FACTORS`` and "dtype".
      thorough: whether to check calls of other lengths, other states and no state in every case.
    """
    rng = np.random.default_rng(0)
    implementation, kernel, scope = row["implementation"], "xla", row["scope"]
    if implementation == "pallas_interpret":
        implementation, kernel = "chunked", implementation
    if implementation == "shared":
        implementation, scope = "recurrent", "shared"
    rule, limits = row["rule"], {}
    if rule in ("mesa", "limits"):
        implementation, kernel = "recurrent", "xla"
    if rule == "limits":
        rule, limits = "hebbian", {"clamp": 0.5, "threshold": 0.02, "row_norm": 0.6}
    learned = row["rates"] == "learned" and rule != "mesa"
    unit = row["rates"] == "unit"
    config = BDHConfig(
        vocab_size=VOCAB,
        n_layer=layers(row),
        d_model=WIDTH,
        n_head=row["heads"],
        n_neurons=NEURONS,
        dropout=0.0,
        dtype=row["dtype"],
        attention="shift" if row["attention"] == "shift" else "rope",
        attention_decay=(0.6, 0.9)[: row["heads"]] if row["attention"] == "damped" else (1.0,),
        implementation=implementation,
        kernel=kernel,
        chunk_size=CHUNK,
        fast=FastWeightConfig(
            learning_rate=1.0 if unit else 0.7,
            decay=1.0 if unit else 0.8,
            scope=scope,
            rule=rule,
            ridge=0.5,
            keep_gram=row["synapse"] == "frozen" and row["rule"] in ("hebbian", "gated_hebbian", "mesa") and not learned,
            **limits,
            address=row["address"],
            address_norm=row["norm"],
            address_active=5,
            address_source=row["source"],
            write_gradient=row["gradient"],
            synapse=row["synapse"] != "absent",
            train_synapse=row["synapse"] == "trained",
            learn_learning_rate=learned,
            learn_decay=learned,
        ),
    )
    model = BDH(config)
    tokens = rng.permutation(VOCAB)[: 2 * LENGTH].reshape(2, LENGTH).astype(np.int32)[: row["batch"]]
    shapes = jax.eval_shape(model.init_slow, jax.random.key(0))
    # Codes around 0.2: their sum is above 1 for some tokens and below for others, so that both sides of "sum" occur.
    scales = {"embed": 1.0, "encoder": 0.1, "encoder_v": 0.5, "decoder": 1.0, "lm_head": 0.5, "synapse": 0.3}
    scales |= {"fast_gate": 0.3, "fast_gate_bias": 1.0}
    slow = {name: scales[name] * rng.normal(size=leaf.shape) for name, leaf in shapes.items() if name in scales}
    if row["source"] == "gate":
        # With the plain draw bfloat16 rounds across a switch (a rectifier, or the kink of the sum norm), and its gradient jumps.
        slow["encoder_v"] *= 1.2
    if learned:
        slow["fast_log_learning_rate"] = np.log(rng.uniform(0.4, 1.2, config.n_head))
        slow["fast_logit_decay"] = rng.uniform(0.5, 2.0, config.n_head)
    slow = {name: array.astype(shapes[name].dtype) for name, array in slow.items()}

    masks = row["masks"]
    valid = reset = None
    if masks in ("valid", "both"):
        # Invalid tokens at the start, at the end and inside; four are left in each example.
        valid = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0, 1, 0]], bool)[: row["batch"]]
    if masks in ("reset", "both"):
        # At the first token, inside, twice in a row; with "both" also at invalid tokens, which start an episode too.
        reset = np.array([[0, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]], bool)[: row["batch"]]
    return Case(row, model, slow, random_state(model, rng, len(tokens)), tokens, valid, reset, thorough)


def random_state(model: BDH, rng: np.random.Generator, batch: int) -> FastState:
    """A state as after some earlier tokens: other numbers in every leaf."""
    shapes = jax.eval_shape(lambda: model.init_fast(batch))

    def fill(path, leaf):
        name = path[-1].name
        if name in ("position", "count"):
            return np.array([3, 7][:batch], leaf.dtype)
        array = 0.2 * rng.normal(size=leaf.shape)
        if name == "gram":
            return np.asarray(array @ np.swapaxes(array, -1, -2), leaf.dtype)
        return np.asarray(array if name in ("attention", "memory") else np.abs(array), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def examples(fast: FastState, numbers: list[int]) -> FastState:
    """Those examples of a state of NumPy arrays."""
    return jax.tree.map(lambda leaf: leaf.take(numbers, axis=min(leaf.ndim - 1, 1)), fast)


def mixed(logits, final, weights):
    """The sum of all outputs, logits and every floating leaf of the state, each times its weight."""
    total = (logits * weights[0]).sum()
    for leaf, weight in zip(jax.tree.leaves(final), jax.tree.leaves(weights[1]), strict=True):
        if np.issubdtype(leaf.dtype, np.floating):
            total = total + (leaf * weight).sum()
    return total


def to_reference(config: BDHConfig, fast: FastState) -> list[reference_model.State]:
    """The examples of a state, each as the reference model holds it."""
    start = reference_model.fresh(config)
    states = []
    for b in range(fast.position.shape[0]):

        def example(name, owner=fast, b=b):
            array = getattr(owner, name, None)
            return getattr(start, name) if array is None else np.asarray(array[:, b], np.float64)

        states.append(
            reference_model.State(
                attention=example("attention"),
                memory=example("memory"),
                gram=example("gram"),
                previous_address=example("previous_address"),
                previous_code=example("previous_code"),
                position=int(fast.position[b]),
                strength=example("strength", fast.activity),
                energy=example("energy", fast.activity),
                count=float(fast.activity.count[b]) if fast.activity is not None else 0.0,
            )
        )
    return states


def from_reference(states: list[reference_model.State], like: FastState) -> FastState:
    """The inverse of :func:`to_reference`, with the leaves that ``like`` has."""

    def leaf(path, present):
        name = path[-1].name
        return np.stack([getattr(state, name) for state in states], axis=0 if present.ndim == 1 else 1)

    return jax.tree_util.tree_map_with_path(leaf, like)


def assert_close(actual: Any, expected: Any, tolerance: float, what: str = "") -> None:
    """Compare trees leaf by leaf, relative to the largest entry of the expected leaf."""
    actual, expected = (dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (actual, expected))
    assert actual.keys() == expected.keys()
    assert actual
    for path, leaf in expected.items():
        have, want = np.asarray(actual[path], np.float64), np.asarray(leaf, np.float64)
        assert have.shape == want.shape
        error = np.max(np.abs(have - want)) / max(np.max(np.abs(want)), 1e-3)
        # A comparison with NaN is false, so this order also refuses NaN.
        assert error <= tolerance, f"{what}{jax.tree_util.keystr(path)}: relative error {error:.2e} above {tolerance:.2e}"
