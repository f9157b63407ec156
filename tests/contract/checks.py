"""What every configuration must satisfy. Each check takes a :class:`tests.contract.cases.Case` and raises AssertionError.

Tolerances: where float64 runs on both sides, ``cases.EXACT``. In bfloat16 rounding (2⁻⁸ a step, through several layer norms
and rectifiers that switch) dominates, so values are held to within ``ROUGH`` of the largest entry: enough to notice a missing
term, not a rounding. What must be bit-identical is so in every dtype.
"""

from __future__ import annotations

import jax
import numpy as np

from bdh_jax import FastState
from tests import reference_model
from tests.contract.cases import (
    EXACT,
    LENGTH,
    VOCAB,
    Case,
    assert_close,
    build,
    examples,
    from_reference,
    mixed,
    to_reference,
)
from tests.contract.causality import allowed, influence, moved_by_later_tokens

ROUGH = 0.15


def tolerance(case: Case) -> float:
    """Relative to the largest entry of an array."""
    return EXACT if case.exact else ROUGH


def check_reference(case: Case) -> None:
    """Logits and final state are those of the NumPy reference, from a given state and from none."""
    compare_with_reference(case, case.fast, case.tokens, case.masks, case.call())
    if case.thorough:
        out = case.apply(case.slow, case.tokens, **case.masks)
        compare_with_reference(case, None, case.tokens, case.masks, out)


def compare_with_reference(case: Case, start: FastState | None, tokens: np.ndarray, masks: dict, out) -> None:
    """``out`` is what the model gave for these arguments."""
    logits, final = out
    states = None if start is None else to_reference(case.config, start)
    expected, states, _ = reference_model.run(case.config, case.slow, tokens, states, **masks)
    seen = np.ones((*tokens.shape, 1), bool) if masks["valid"] is None else masks["valid"][..., None]
    assert_close(np.where(seen, logits, 0), np.where(seen, expected, 0), tolerance(case), "logits")
    assert_close(final, from_reference(states, final), tolerance(case), "state")
    like = jax.eval_shape(lambda: case.model.init_fast(len(case.tokens)))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), final) == jax.tree.map(lambda a: (a.shape, a.dtype), like)


def check_causality_by_perturbation(case: Case) -> None:
    """Later tokens leave the logits before them bit-identical."""
    assert moved_by_later_tokens(lambda tokens: case.call(tokens)[0], case.tokens, VOCAB) == 0
    if case.starts_from_none:
        tokens, masks = first_tokens(case)
        assert moved_by_later_tokens(lambda tokens: case.apply(case.slow, tokens, **masks)[0], tokens, VOCAB) == 0


def check_influence(case: Case) -> None:
    """No gradient from the future, another example, an earlier episode, or an invalid token: exact zeros."""
    if not case.exact:
        return  # what is masked is so in every dtype, which the other checks see

    def one_by_one(here):
        """With the program that the other checks use, too, and no weight on the final state."""
        nothing = jax.tree.map(lambda leaf: np.zeros(leaf.shape), case.fast)
        return np.stack([case.differentiate(weights=(weights, nothing))[1][0]["embed"] for weights in here])

    seen = influence(one_by_one, case.tokens, VOCAB)
    may = allowed(case.tokens, case.valid, case.reset)
    np.testing.assert_array_equal(seen[~may], 0)
    assert np.isfinite(seen).all()
    # A model that sees nothing at all would pass so far. Not all is seen: the first write of an episode may have a zero key, and
    # where the gradient stops at writes some influence has none.
    assert np.einsum("btbt->bt", seen).all()
    assert np.mean(seen[may] > 0) > 0.5


def check_isolation(case: Case) -> None:
    """Another example's tokens and state change nothing, bit for bit; permuting the batch permutes the results."""
    if len(case.tokens) == 1:
        return
    logits, final = case.call()
    other = examples(case.fast, [0, 0])
    tokens = np.stack([case.tokens[0], (case.tokens[1] + 1) % VOCAB])
    changed_logits, changed_final = case.call(tokens, other)
    np.testing.assert_array_equal(changed_logits[0], logits[0])
    jax.tree.map(np.testing.assert_array_equal, examples(changed_final, [0]), examples(final, [0]))
    assert np.any(np.asarray(changed_logits[1]) != np.asarray(logits[1]))

    swap = [1, 0]
    valid, reset = (None if mask is None else mask[swap] for mask in (case.valid, case.reset))
    swapped = case.call(case.tokens[swap], examples(case.fast, swap), valid=valid, reset=reset)
    assert_close(swapped, (logits[swap], examples(final, swap)), tolerance(case))


def first_tokens(case: Case) -> tuple[np.ndarray, dict]:
    """What a call without a state is given: in quick cases another number of tokens than the calls with one."""
    count = LENGTH if case.thorough else 5
    return case.tokens[:, :count], {name: None if mask is None else mask[:, :count] for name, mask in case.masks.items()}


def check_splits(case: Case) -> None:
    """Any split of the sequence into calls gives the same logits and final state."""
    check_two_calls(case)
    if not case.thorough:
        return
    logits, final = case.call()
    length = case.tokens.shape[1]
    for cuts in ([length // 2], list(range(1, length))):
        fast, pieces = case.fast, []
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            masks = {name: None if mask is None else mask[:, start:stop] for name, mask in case.masks.items()}
            piece, fast = case.apply(case.slow, case.tokens[:, start:stop], fast, **masks)
            pieces.append(piece)
        seen = case.valid_tokens()[..., None]
        joined = np.where(seen, np.concatenate(pieces, axis=1), 0)
        assert_close((joined, fast), (np.where(seen, logits, 0), final), tolerance(case), f"split at {cuts}: ")


def check_two_calls(case: Case) -> None:
    """A call and one more from its state give what the reference gives for all tokens at once.

    The second call is one that is compiled already, so only what starts without a state costs anything. A form that goes token by
    token runs a call of one token without its loop over them, which some cases do, too; tests/test_model.py cuts each form into
    calls of one to three tokens.
    """
    start, (before, masks) = None, first_tokens(case)
    if case.starts_from_none:
        out = case.apply(case.slow, before, **masks)
    else:
        start, before, masks, out = case.fast, case.tokens, case.masks, case.call()
    after = (case.tokens + 1) % VOCAB
    logits, final = case.call(after, out[1])
    joined = {
        name: None if mask is None else np.concatenate([masks[name], mask], axis=1) for name, mask in case.masks.items()
    }
    both = np.concatenate([out[0], logits], axis=1), final
    compare_with_reference(case, start, np.concatenate([before, after], axis=1), joined, both)
    if case.by_token and case.starts_from_none:
        fast, pieces = case.fast, []
        for t in range(LENGTH):
            masks = {name: None if mask is None else mask[:, t : t + 1] for name, mask in case.masks.items()}
            piece, fast = case.apply(case.slow, case.tokens[:, t : t + 1], fast, **masks)
            pieces.append(piece)
        compare_with_reference(case, case.fast, case.tokens, case.masks, (np.concatenate(pieces, axis=1), fast))


def check_padding(case: Case) -> None:
    """Tokens marked invalid change nothing, wherever they stand: the rest gives what it gives alone."""
    if case.valid is None or case.reset is not None:
        return  # a reset at an invalid token has no counterpart without that token
    logits, final = case.call()
    dense = np.stack([row[keep] for row, keep in zip(case.tokens, case.valid, strict=True)])
    count = dense.shape[1]
    if case.thorough:
        expected, expected_final = case.apply(case.slow, dense, case.fast, valid=np.ones(dense.shape, bool))
    else:  # in the same program, with the others after them
        behind = np.tile(np.arange(LENGTH) < count, (len(dense), 1))
        expected, expected_final = case.call(np.concatenate([dense, dense], axis=1)[:, :LENGTH], valid=behind)
        expected = expected[:, :count]
    assert_close(np.asarray(logits)[case.valid], np.asarray(expected).reshape(-1, VOCAB), tolerance(case), "logits")
    assert_close(final, expected_final, tolerance(case), "state")
    rubbish = np.where(case.valid, case.tokens, (case.tokens + 5) % VOCAB)
    again = case.call(rubbish)
    np.testing.assert_array_equal(np.asarray(again[0])[case.valid], np.asarray(logits)[case.valid])
    jax.tree.map(np.testing.assert_array_equal, again[1], final)


def check_reset(case: Case) -> None:
    """Nothing before a reset is seen after it: a new episode starts from zeros in every leaf of the state."""
    if case.reset is None:
        return
    logits, final = case.call()
    last = LENGTH // 2
    assert case.reset[:, last].all()
    assert not case.reset[:, last + 1 :].any()
    # Earlier tokens and the initial state are replaced: bit-identical from the last reset on.
    tokens = np.concatenate([(case.tokens[:, :last] + 3) % VOCAB, case.tokens[:, last:]], axis=1)
    other, other_final = case.call(tokens, jax.tree.map(lambda leaf: leaf + leaf, case.fast))
    np.testing.assert_array_equal(other[:, last:], logits[:, last:])
    jax.tree.map(np.testing.assert_array_equal, other_final, final)
    # And it is what an episode of its own gives.
    tail, new = case.tokens[:, last:], case.model.init_fast(len(case.tokens))
    valid = None if case.valid is None else case.valid[:, last:]
    ends = case.thorough or valid is not None
    if case.thorough:
        alone, alone_final = case.apply(case.slow, tail, new, valid=valid, reset=np.zeros(tail.shape, bool))
    else:  # in the same program, with other tokens after it; if those count, the final state says nothing
        valid = None if valid is None else np.concatenate([valid, np.zeros(valid.shape, bool)], axis=1)
        twice = np.concatenate([tail, tail], axis=1)
        alone, alone_final = case.call(twice, new, valid=valid, reset=np.zeros(twice.shape, bool))
        alone = alone[:, :last]
    seen = case.valid_tokens()[:, last:, None]
    assert_close(np.where(seen, logits[:, last:], 0), np.where(seen, alone, 0), tolerance(case), "logits")
    if ends:
        assert_close(final, alone_final, tolerance(case), "state")


def check_mean_and_none(case: Case) -> None:
    """``state="none"`` and "mean" give the same logits as "full", and "mean" the batch mean of S and the activity."""
    if not case.thorough and not (case.exact and case.row["masks"] == "both" and not case.by_token):
        return  # tests/test_model.py does this without masks; what goes token by token forms every state in any case
    logits, full = case.call()
    seen = case.valid_tokens()[..., None]
    for state in ("none", "mean") if case.thorough else ("mean",):
        same, final = case.apply(case.slow, case.tokens, case.fast, state=state, **case.masks)
        assert_close(np.where(seen, same, 0), np.where(seen, logits, 0), tolerance(case), state)
        if state == "none":
            assert final is None
    expected = FastState(
        attention=None,
        memory=np.mean(full.memory, axis=1, keepdims=True),
        gram=None if full.gram is None else np.mean(full.gram, axis=1, keepdims=True),
        previous_address=None,
        previous_code=None,
        position=None,
        activity=jax.tree.map(lambda leaf: np.mean(leaf, axis=max(leaf.ndim - 3, 0), keepdims=True), full.activity),
    )
    assert_close(final, expected, tolerance(case), "mean")


def check_gradients(case: Case) -> None:
    """Gradients of every input are those of the reference, by finite differences; in bfloat16 nearly those in float64."""
    actual = case.differentiate()[1]
    if case.exact:
        compare_with_finite_differences(case, actual)
        return
    expected = build(case.row | {"dtype": "float64"}).differentiate()[1]
    have, want = (jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected))
    sizes = [np.linalg.norm(leaf) for _, leaf in want]
    for (path, leaf), (_, other), size in zip(have, want, sizes, strict=True):
        error = np.linalg.norm(np.asarray(leaf, np.float64) - other)
        # Where a gradient nearly cancels, roundings of what cancelled remain.
        assert error <= ROUGH * size + 2**-8 * max(sizes), f"gradient of {jax.tree_util.keystr(path)}"


def compare_with_finite_differences(case: Case, gradient) -> None:
    """Along one random direction per input. Where the gradient stops at writes, the reference keeps the writes fixed."""
    weights, stops = case.mixture, case.config.fast.write_gradient == "stop"
    masks = case.masks
    start = to_reference(case.config, case.fast)
    writes = reference_model.run(case.config, case.slow, case.tokens, start, **masks)[2] if stops else None
    rng = np.random.default_rng(3)
    # The step is so small that no rectifier switches; 1e-16 · |number| / step is the rounding error that remains.
    step = 1e-7

    def number(slow, fast):
        logits, states, _ = reference_model.run(
            case.config, slow, case.tokens, to_reference(case.config, fast), writes=writes, **masks
        )
        return mixed(logits, from_reference(states, fast), weights)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        direction = rng.normal(size=leaf.shape)
        if "gram" in jax.tree_util.keystr(path):
            direction = direction + np.swapaxes(direction, -1, -2)  # a gram is symmetric
        inputs = (case.slow, case.fast)

        def shifted(sign, path=path, direction=direction, inputs=inputs):
            return jax.tree_util.tree_map_with_path(
                lambda p, a: np.asarray(a, np.float64) + sign * step * direction if p == path else a, inputs
            )

        above, below = number(*shifted(1)), number(*shifted(-1))
        slope = (above - below) / (2 * step)
        name = jax.tree_util.keystr(path)
        if "synapse" in name and not case.config.fast.train_synapse:
            np.testing.assert_array_equal(leaf, 0)
            continue
        have = np.sum(np.asarray(leaf) * direction)
        # Some settings make large numbers, as a delta rule does with long addresses and a rate of one.
        rounding = 2.0**-52 * max(abs(above), abs(below)) / step
        assert abs(have - slope) <= 1e-5 * np.linalg.norm(leaf) + 1e-6 + rounding, f"gradient of {name}: {have} but {slope}"
        # The activity is only counted, and so is the gram, but for the rule that reads it.
        only_counted = "activity" in name or "gram" in name and case.config.fast.rule != "mesa"
        unused = case.reset is not None and only_counted or stops and "previous_address" in name
        # Perhaps no valid token before the first reset.
        unused = unused or case.reset is not None and "previous_code" in name
        # Among many cases are some whose few gated codes happen to be zero where a gate was open.
        unused = unused or case.thorough and slope == 0
        assert unused or np.any(np.asarray(leaf) != 0), f"gradient of {name} is zero"


CHECKS = {
    "reference": check_reference,
    "causality by perturbation": check_causality_by_perturbation,
    "influence by gradient": check_influence,
    "isolation": check_isolation,
    "splits": check_splits,
    "padding": check_padding,
    "reset": check_reset,
    "mean and none": check_mean_and_none,
    "gradients": check_gradients,
}
