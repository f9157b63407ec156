"""The configurations that the contract is checked on, with weights, tokens and a state to start from.

Axis letters: B batch, T time, L layer, H head, N neurons per head, D model width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bdh_jax import BDH, BDHConfig, FastState, FastWeightConfig
from bdh_jax.fast_weights.state import BatchMean, MeanLayer
from bdh_jax.models.token_step import TokenStepConfig, with_slots, without_slots
from tests import reference_model
from tests.contract import twins
from tests.contract.covering import covering

Row = dict[str, Any]
"""Name → value for each of ``FACTORS`` and "dtype"."""

FORMS = ("recurrent", "chunked", "parallel", "pallas_interpret", "token_step")
"""How a scan can be computed. Of the last, calls go token by token, writes wait in slots, and reads are of active rows."""


@dataclasses.dataclass(frozen=True)
class RuleUnderTest:
    """What the rows have to know of a write rule.

    Attributes:
      settings: arguments of ``FastWeightConfig``.
      forms: which can run it; the others have to refuse it.
      learned_rates: whether η and λ may be learned, each head its own.
      keeps_gram: whether ``keep_gram`` means anything.
      scales: standard deviation of each of the rule's own weights.
    """

    settings: Mapping[str, Any]
    forms: tuple[str, ...] = FORMS
    learned_rates: bool = True
    keeps_gram: bool = False
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)


LIMITS = {"clamp": 0.5, "threshold": 0.02, "row_norm": 0.6}
RULES: dict[str, RuleUnderTest] = {
    "hebbian": RuleUnderTest({"rule": "hebbian"}, keeps_gram=True),
    "gated_hebbian": RuleUnderTest({"rule": "gated_hebbian"}, keeps_gram=True),
    "delta": RuleUnderTest({"rule": "delta"}, FORMS[:3]),
    "gated_delta": RuleUnderTest({"rule": "gated_delta"}, FORMS[:3]),
    "longhorn": RuleUnderTest({"rule": "longhorn"}, FORMS[:3]),
    "oja": RuleUnderTest({"rule": "oja"}, FORMS[:3]),
    "mesa": RuleUnderTest({"rule": "mesa", "options": {"ridge": 0.5}}, FORMS[:1], learned_rates=False),
    "limits": RuleUnderTest({"rule": "hebbian", **LIMITS}, FORMS[:1]),
}
"""Values of the factor "rule". The test of a rule from outside the library adds its own with :func:`register`."""

FACTORS = {
    "implementation": FORMS,
    "scope": ("layer", "one", "two"),  # one S for each of two layers, for the only layer, or for two together
    "rule": tuple(RULES),
    "address": ("previous", "current"),
    "norm": ("none", "l2", "sum", "kwta", "centred"),
    "source": ("code", "gated", "gate"),
    "gradient": ("full", "stop"),
    "synapse": ("absent", "frozen", "trained"),
    "gram": ("absent", "kept"),
    "heads": (1, 2),
    "batch": (2, 1),  # one head of one example takes a shorter way
    "rates": ("fixed", "unit", "learned"),  # λ = η = 1 takes shorter ways than other numbers
    "attention": ("rope", "shift", "damped"),
    "masks": ("none", "valid", "reset", "both"),
}
REQUIRED = (
    # A shared S that is reset and written at the same token: only codes write there, as an episode's first gate is zero.
    {"scope": "two", "rule": "hebbian", "address": "current", "source": "code", "gradient": "full", "masks": "reset"},
    # Heads with rates of their own are not merged into one, and what a rule predicts is a sum over them, token by token as well.
    {"implementation": "recurrent", "rule": "delta", "rates": "learned", "heads": 2},
    # What a synapse knows already is not written.
    {"rule": "mesa", "synapse": "trained", "heads": 2, "masks": "valid"},
    # Some checks of the quick suite look at these only.
    *({"rule": rule, "implementation": "recurrent", "masks": "both"} for rule in RULES),
)
"""Three and more values that have to stand together somewhere."""

NARROW = tuple(
    dict(zip(("rule", "implementation", "scope", "norm", "source", "attention"), values, strict=True))
    for values in (
        ("hebbian", "recurrent", "layer", "none", "code", "rope"),
        ("gated_hebbian", "pallas_interpret", "one", "l2", "code", "rope"),
        ("delta", "chunked", "one", "l2", "gated", "shift"),
        ("gated_delta", "parallel", "layer", "sum", "gate", "damped"),
        ("longhorn", "chunked", "one", "kwta", "code", "rope"),
        ("oja", "recurrent", "two", "centred", "gated", "rope"),
        ("mesa", "recurrent", "one", "sum", "code", "damped"),
        ("limits", "recurrent", "one", "none", "code", "rope"),
        ("hebbian", "token_step", "layer", "none", "code", "rope"),
    )
)
"""What stands together in bfloat16. Elsewhere a rounding may flip a switch (a winner, a limit), or is made larger by a rule that corrects
its own errors in two layers: then rounding nothing but the weights to 2⁻⁹ moves a gradient by a quarter."""

LENGTH, WIDTH, NEURONS, VOCAB, CHUNK = 8, 8, 16, 18, 3
SLOTS = TokenStepConfig(slots=3, attention=5, encoder_v=7, decoder=5, memory=7)
"""Slots that are full twice within ``LENGTH``, and budgets that some tokens exceed and others do not."""
# Full float64 products and sums of up to T·K terms, a few of them on top of each other, divided by layer norms whose input is
# of order 0.1: √(T·K) · 2⁻⁵² · 10⁴.
EXACT = np.sqrt(LENGTH * NEURONS) * 2.0**-52 * 1e4


def register(name: str, rule: RuleUnderTest, twin: twins.Twin) -> None:
    """Add a rule from outside the library and its twin.

    Args:
      name: value of the factor "rule".
      rule: what its rows have to know.
      twin: the same rule in NumPy.

    Raises:
      ValueError: if there is another rule of that name.
    """
    if RULES.setdefault(name, rule) != rule:
        raise ValueError(f"there is a rule {name!r} already")
    twins.register(rule.settings["rule"], twin)


def possible(row: Mapping[str, Any]) -> bool:
    """Whether some values can stand in one row; what is not there yet forbids nothing."""
    form = row.get("implementation", "recurrent")
    if row.get("scope") == "two" and form != "recurrent":
        return False
    if form == "token_step" and (row.get("scope", "layer") != "layer" or row.get("gram") == "kept"):
        return False
    if row.get("gram") == "kept" and row.get("rates") == "learned":
        return False
    if "rule" not in row:
        return row.get("gram") == "absent" or any(form in rule.forms and rule.keeps_gram for rule in RULES.values())
    rule = RULES[row["rule"]]
    if row.get("gram") == "kept" and not rule.keeps_gram:
        return False
    return form in rule.forms and (rule.learned_rates or row.get("rates") != "learned")


def layers(row: Row) -> int:
    """How many layers the model of a row has. A token step takes longest to compile, and has two only where there are no masks;
    tests/models/test_token_step.py has two with them."""
    return 1 if row["scope"] == "one" or row["implementation"] == "token_step" and row["masks"] != "none" else 2


def by_token(row: Row) -> bool:
    """Whether the model goes token by token."""
    return row["implementation"] in ("recurrent", "token_step")


def time_to_compile(row: Mapping[str, Any]) -> int:
    """Roughly, in units of one layer. The interpreted kernel is a program in itself."""
    return (1 if row["scope"] == "one" else 2) * (2 if row["implementation"] == "pallas_interpret" else 1)


def rows_for(
    factors: Mapping[str, Sequence[Any]], strength: int, *, narrow: Sequence[Mapping[str, Any]] = (), tries: int = 30
) -> list[Row]:
    """Rows that hold every possible combination of so many values in float64.

    Args:
      factors: as ``FACTORS``.
      strength: how many.
      narrow: values that stand together in rows in bfloat16, which hold every value if there are enough of them.
      tries: of :func:`tests.contract.covering.covering`.
    """
    options = {"cost": time_to_compile, "tries": tries, "possible": possible}
    rough = covering(factors, 1, required=narrow, **options)[: len(narrow)]
    together = [row for row in REQUIRED if all(value in factors[name] for name, value in row.items())]
    # Rows in bfloat16 are in float64, too: gradients are compared with those, which are compiled once.
    rows = covering(factors, strength, required=[*rough, *together], **options)
    return [*({**row, "dtype": "float64"} for row in rows), *({**row, "dtype": "bfloat16"} for row in rough)]


def rows_of_rule(name: str, *, strength: int = 1) -> list[Row]:
    """Rows of one rule, which may come from outside the library: every value of each factor, or every pair of values, … of those
    that it can be combined with; and one row in bfloat16."""
    rule = RULES[name]
    factors = FACTORS | {"rule": (name,), "implementation": rule.forms}
    factors |= {} if rule.learned_rates else {"rates": ("fixed", "unit")}
    factors |= {} if rule.keeps_gram else {"gram": ("absent",)}
    form = [form for form in rule.forms if form != "token_step"][-1]
    narrow = {"implementation": form, "scope": "one", "norm": "l2", "source": "code", "attention": "rope"}
    return rows_for(factors, strength, narrow=[narrow])


@functools.cache
def quick_rows() -> list[Row]:
    """Every pair of values of two factors in float64, and every value in bfloat16."""
    return rows_for(FACTORS, 2, narrow=NARROW)


def inner_rows() -> list[Row]:
    """The quick rows that hold every value in float64, for the inner loop of work."""
    return quick_rows()[: len(NARROW)]


@functools.cache
def full_rows() -> list[Row]:
    """Every three values of three factors in float64."""
    return rows_for(FACTORS, 3, tries=5)


def row_id(row: Row) -> str:
    """Name of a row in test reports."""
    return "-".join(str(value) for value in row.values())


@dataclasses.dataclass(frozen=True)
class Case:
    """One configuration and the inputs it is checked with. Tokens are distinct, so that an embedding row is one token's.

    Of "token_step" it is ``stepping`` that runs, and ``model`` is the same without slots: states are given and returned as that has them.
    """

    row: Row
    model: BDH
    slow: dict[str, np.ndarray]
    fast: FastState
    tokens: np.ndarray
    valid: np.ndarray | None
    reset: np.ndarray | None
    stepping: BDH | None = None

    @property
    def config(self) -> BDHConfig:
        return self.model.config

    @property
    def exact(self) -> bool:
        return self.config.dtype == "float64"

    @property
    def masks(self) -> dict[str, np.ndarray | None]:
        """Arguments of ``apply`` and ``call``."""
        return {"valid": self.valid, "reset": self.reset}

    def valid_tokens(self) -> np.ndarray:
        """[B, T] bool."""
        return np.ones(self.tokens.shape, bool) if self.valid is None else self.valid

    @functools.cached_property
    def with_gradients(self) -> Callable[..., Any]:
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
    def _applied(self) -> dict[str, Callable[..., Any]]:
        return {state: jax.jit(self._run(state)) for state in ("full", "mean", "none")}

    def _run(self, state: str = "full") -> Callable[..., Any]:
        model = self.stepping
        if model is None:

            def run(slow, tokens, fast, valid, reset):
                out = self.model.apply({"params": slow}, tokens, fast, valid=valid, reset=reset, state=state)
                return out.logits, out.fast

            return run

        def run_with_slots(slow, tokens, fast, valid, reset):
            fast = None if fast is None else with_slots(fast, model.declared_fast(len(tokens)))
            weights = {"params": slow, "views": model.architecture.views(slow)}
            out = model.apply(weights, tokens, fast, valid=valid, reset=reset, state=state)
            return out.logits, without_slots(out.fast) if state == "full" else out.fast

        return run_with_slots

    def apply(
        self,
        tokens: np.ndarray,
        fast: FastState | None = None,
        *,
        valid: np.ndarray | None = None,
        reset: np.ndarray | None = None,
        state: str = "full",
    ) -> tuple[np.ndarray, Any]:
        """(logits, fast) of ``model.apply``, as NumPy arrays: what checks do with them is not compiled."""
        return jax.device_get(self._applied[state](self.slow, tokens, fast, valid, reset))

    def call(
        self, tokens: np.ndarray | None = None, fast: FastState | None = None, **masks: np.ndarray | None
    ) -> tuple[np.ndarray, FastState]:
        """(logits, fast) on this case's inputs, some of them changed perhaps, always by the same compiled program: the one that
        gives gradients as well."""
        return self.differentiate(tokens, fast, **masks)[0]

    def differentiate(
        self,
        tokens: np.ndarray | None = None,
        fast: FastState | None = None,
        weights: Any = None,
        **masks: np.ndarray | None,
    ) -> Any:
        """``with_gradients`` on this case's inputs, some of them changed perhaps, and random weights if none are given."""
        tokens, fast = self.tokens if tokens is None else tokens, self.fast if fast is None else fast
        masks = self.masks | masks
        floats = jax.tree.map(lambda leaf: leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else None, fast)
        weights = self.mixture if weights is None else weights
        return jax.device_get(self.with_gradients(self.slow, floats, tokens, fast, weights, masks["valid"], masks["reset"]))

    @functools.cached_property
    def mixture(self) -> tuple[np.ndarray, FastState]:
        """Fixed random weights of all outputs, so that one number depends on everything: logits and every leaf of the state."""
        rng = np.random.default_rng(2)
        logits = rng.normal(size=(*self.tokens.shape, VOCAB)) * self.valid_tokens()[..., None]
        return logits, jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), self.fast)


def mixed(logits: Any, final: FastState, weights: tuple[np.ndarray, FastState]) -> Any:
    """The sum of all outputs, logits and every floating leaf of the state, each times its weight."""
    total = (logits * weights[0]).sum()
    for leaf, weight in zip(jax.tree.leaves(final), jax.tree.leaves(weights[1]), strict=True):
        if np.issubdtype(leaf.dtype, np.floating):
            total = total + (leaf * weight).sum()
    return total


def config_of(row: Row) -> BDHConfig:
    """The configuration that a row stands for."""
    rule = RULES[row["rule"]]
    pallas = row["implementation"].startswith("pallas")
    learned, unit = row["rates"] == "learned", row["rates"] == "unit"
    return BDHConfig(
        vocab_size=VOCAB,
        n_layer=layers(row),
        d_model=WIDTH,
        n_head=row["heads"],
        n_neurons=NEURONS,
        dropout=0.0,
        dtype=row["dtype"],
        attention="shift" if row["attention"] == "shift" else "rope",
        attention_decay=(0.6, 0.9)[: row["heads"]] if row["attention"] == "damped" else (1.0,),
        learn_attention_decay=row["attention"] == "damped" and learned,
        implementation="chunked" if pallas else "recurrent" if by_token(row) else row["implementation"],
        kernel=row["implementation"] if pallas else "xla",
        chunk_size=CHUNK,
        token_step=SLOTS if row["implementation"] == "token_step" else TokenStepConfig(),
        fast=FastWeightConfig(
            learning_rate=1.0 if unit else 0.7,
            decay=1.0 if unit else 0.8,
            scope="layer" if row["scope"] == "layer" else "shared",
            keep_gram=row["gram"] == "kept",
            address=row["address"],
            address_norm=row["norm"],
            address_active=5,
            address_source=row["source"],
            write_gradient=row["gradient"],
            synapse=row["synapse"] != "absent",
            train_synapse=row["synapse"] == "trained",
            learn_learning_rate=learned,
            learn_decay=learned,
            **rule.settings,
        ),
    )


def build(row: Row) -> Case:
    """Make a case from a row of factors."""
    rng = np.random.default_rng(0)
    config = config_of(row)
    stepping = BDH(config) if config.token_step.slots else None
    model = BDH(dataclasses.replace(config, token_step=TokenStepConfig()))
    tokens = rng.permutation(VOCAB)[: 2 * LENGTH].reshape(2, LENGTH).astype(np.int32)[: row["batch"]]

    masks = row["masks"]
    valid = reset = None
    if masks in ("valid", "both"):
        # Invalid tokens at the start, at the end and inside; four are left in each example.
        valid = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [1, 0, 1, 1, 0, 0, 1, 0]], bool)[: row["batch"]]
    if masks in ("reset", "both"):
        # At the first token, inside, twice in a row; with "both" also at invalid tokens, which start an episode too.
        reset = np.array([[0, 0, 0, 1, 1, 0, 0, 0], [1, 0, 0, 0, 1, 0, 0, 0]], bool)[: row["batch"]]
    slow = random_weights(row, model, rng)
    return Case(row, model, slow, random_state(model, rng, len(tokens)), tokens, valid, reset, stepping)


def random_weights(row: Row, model: BDH, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Weights as after some training.

    Raises:
      KeyError: for a weight whose size nobody gave.
    """
    heads = row["heads"]
    # Codes around 0.2: their sum is above 1 for some tokens and below for others, so that both sides of "sum" occur.
    scales = {"embed": 1.0, "encoder": 0.1, "encoder_v": 0.5, "decoder": 1.0, "lm_head": 0.5, "synapse": 0.3}
    scales |= {"fast_gate": 0.3, "fast_gate_bias": 1.0}
    scales |= RULES[row["rule"]].scales
    if row["source"] == "gate":
        # With the plain draw bfloat16 rounds across a switch (a rectifier, or the kink of the sum norm), and its gradient jumps.
        scales["encoder_v"] *= 1.2
    rates = {
        "fast_log_learning_rate": lambda: np.log(rng.uniform(0.4, 1.2, heads)),
        "fast_logit_decay": lambda: rng.uniform(0.5, 2.0, heads),
        "attention_logit_decay": lambda: rng.uniform(0.0, 2.0, heads),
    }
    shapes = jax.eval_shape(model.init_slow, jax.random.key(0))
    slow = {name: scales[name] * rng.normal(size=leaf.shape) for name, leaf in shapes.items() if name not in rates}
    slow |= {name: draw() for name, draw in rates.items() if name in shapes}
    return {name: array.astype(shapes[name].dtype) for name, array in slow.items()}


# What follows is all that these tests know of how a FastState is made up.


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
        return np.asarray(array if name in ("attention", "S") else np.abs(array), leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def examples(fast: FastState, numbers: Sequence[int]) -> FastState:
    """Those examples of a state of arrays [B, ...]."""
    return jax.tree.map(lambda leaf: leaf.take(np.array(numbers), axis=0), fast)


def where(chosen: jax.Array, yes: FastState, no: FastState) -> FastState:
    """The examples of ``yes`` where ``chosen`` [B], the others of ``no``."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def memory_leaves(fast: FastState) -> list[str]:
    """Names of the arrays that the write rule keeps, and of the sums kept beside them."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(fast)]
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]
    return [name for name in names if "memory" in name.split(".") or name.startswith("shared.")]


def with_leaf(fast: FastState, other: FastState, name: str) -> FastState:
    """``fast`` with one array of ``other``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a, b: b if jax.tree_util.keystr(path, simple=True, separator=".") == name else a, fast, other
    )


def without_previous(fast: FastState) -> FastState:
    """``fast`` without what the last token left for the next to write to."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-1].name.startswith("previous_") else leaf, fast
    )


def mean_over_examples(full: FastState) -> BatchMean:
    """What ``state="mean"`` has to return where ``full`` is what "full" returns."""
    layers = tuple(MeanLayer(layer.memory, layer.use) for layer in full.layers)
    mean = BatchMean(layers, full.shared, full.count)
    return jax.tree.map(lambda leaf: np.mean(leaf, axis=0, keepdims=True), mean)


def to_reference(config: BDHConfig, fast: FastState) -> list[reference_model.State]:
    """The examples of a state, each as the reference model holds it."""
    start = reference_model.fresh(config)
    memories = fast.memories() if fast.has_memory else ()

    def stacked(arrays, default, b):
        return default if arrays[0] is None else np.stack([np.asarray(array[b], np.float64) for array in arrays])

    def of_rule(memory, b):
        names = [field.name for field in dataclasses.fields(memory.written) if "axes" in field.metadata]
        return {name: np.asarray(getattr(memory.written, name)[b], np.float64) for name in names}

    states = []
    for b in range(fast.position.shape[0]):
        layer = {
            name: stacked([getattr(layer, name) for layer in fast.layers], getattr(start, name), b)
            for name in ("attention", "previous_address", "previous_code")
        }
        use = {
            name: stacked([getattr(layer.use, name, None) for layer in fast.layers], getattr(start, name), b)
            for name in ("strength", "energy")
        }
        states.append(
            reference_model.State(
                memory=[of_rule(memory, b) for memory in memories] or start.memory,
                gram=stacked([memory.gram for memory in memories] or [None], start.gram, b),
                position=int(fast.position[b]),
                count=0.0 if fast.count is None else float(fast.count[b]),
                **layer,
                **use,
            )
        )
    return states


def from_reference(states: list[reference_model.State], like: FastState) -> FastState:
    """The inverse of :func:`to_reference`, with the leaves that ``like`` has."""

    def value(state, names):
        owner, name = names[0], names[-1]
        if owner == "shared" or "memory" in names:
            slot = 0 if owner == "shared" else int(names[1])
            return state.memory[slot][name] if "written" in names else state.gram[slot]
        array = getattr(state, name)
        return array[int(names[1])] if owner == "layers" else array

    def leaf(path, _):
        names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
        return np.stack([value(state, names) for state in states])

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
