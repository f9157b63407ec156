"""What every configuration must satisfy. Each check takes a :class:`tests.contract.cases.Case` and raises AssertionError.

Which rows a check is for is decided from the row, before anything is built (:class:`Check`); a check that is called asserts.

Tolerances: where float64 runs on both sides, ``cases.EXACT``. In bfloat16 rounding (2⁻⁸ a step, through several layer norms
and rectifiers that switch) dominates, so values are held to within ``ROUGH`` of the largest entry: enough to notice a missing
term, not a rounding. What must be bit-identical is so in every dtype.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import numpy as np

from bdh_jax import FastState
from tests import reference_model
from tests.contract.cases import (
    EXACT,
    LENGTH,
    VOCAB,
    Case,
    Row,
    assert_close,
    build,
    by_token,
    examples,
    from_reference,
    mean_over_examples,
    mixed,
    to_reference,
)
from tests.contract.causality import allowed, influence, moved_by_later_tokens

ROUGH = 0.15
FIRST = 5  # tokens of a call without a state: another number than of the calls with one


def tolerance(case: Case) -> float:
    """Relative to the largest entry of an array."""
    return EXACT if case.exact else ROUGH


def part(array: np.ndarray | None, start: int, stop: int | None = None) -> Any:
    """Some tokens of a mask that may be absent."""
    return None if array is None else array[:, start:stop]


def parts(case: Case, start: int, stop: int | None = None) -> dict[str, Any]:
    """The masks of some tokens."""
    return {name: part(mask, start, stop) for name, mask in case.masks.items()}


def check_reference(case: Case) -> None:
    """Logits and final state are those of the NumPy reference, from a given state."""
    compare_with_reference(case, case.fast, case.tokens, case.masks, case.call())


def check_reference_from_none(case: Case) -> None:
    """The same without a state to start from."""
    compare_with_reference(case, None, case.tokens, case.masks, case.apply(case.tokens, **case.masks))


def compare_with_reference(
    case: Case, start: FastState | None, tokens: np.ndarray, masks: dict[str, Any], out: tuple[np.ndarray, FastState]
) -> None:
    """``out`` is what the model gave for these arguments."""
    logits, final = out
    states = None if start is None else to_reference(case.config, start)
    expected, states, _ = reference_model.run(case.config, case.slow, tokens, states, **masks)
    seen = np.ones((*tokens.shape, 1), bool) if masks["valid"] is None else masks["valid"][..., None]
    assert_close(np.where(seen, logits, 0), np.where(seen, expected, 0), tolerance(case), "logits")
    assert_close(final, from_reference(states, final), tolerance(case), "state")
    like = jax.eval_shape(lambda: case.model.init_fast(len(case.tokens)))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), final) == jax.tree.map(lambda a: (a.shape, a.dtype), like)


def check_causality(case: Case) -> None:
    """Later tokens leave the logits before them bit-identical."""
    assert moved_by_later_tokens(lambda tokens: case.call(tokens)[0], case.tokens, VOCAB) == 0


def check_causality_from_none(case: Case) -> None:
    """The same without a state to start from."""
    masks = parts(case, 0, FIRST)
    assert moved_by_later_tokens(lambda tokens: case.apply(tokens, **masks)[0], case.tokens[:, :FIRST], VOCAB) == 0


def check_influence(case: Case) -> None:
    """No gradient from the future, another example, an earlier episode, or an invalid token: exact zeros."""

    def one_by_one(here: np.ndarray) -> np.ndarray:
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
    logits, final = case.call()
    other = examples(case.fast, [0, 0])
    tokens = np.stack([case.tokens[0], (case.tokens[1] + 1) % VOCAB])
    changed_logits, changed_final = case.call(tokens, other)
    np.testing.assert_array_equal(changed_logits[0], logits[0])
    chex.assert_trees_all_equal(examples(changed_final, [0]), examples(final, [0]))
    assert np.any(np.asarray(changed_logits[1]) != np.asarray(logits[1]))

    swap = [1, 0]
    valid, reset = (None if mask is None else mask[swap] for mask in (case.valid, case.reset))
    swapped = case.call(case.tokens[swap], examples(case.fast, swap), valid=valid, reset=reset)
    assert_close(swapped, (logits[swap], examples(final, swap)), tolerance(case))


def check_two_calls(case: Case) -> None:
    """A call and one more from its state give what the reference gives for all tokens at once.

    tests/models cuts each form into calls of one to three tokens.
    """
    continue_and_compare(case, case.fast, LENGTH, case.call())


def check_two_calls_from_none(case: Case) -> None:
    """The same where the first call has no state to start from, and another number of tokens."""
    continue_and_compare(case, None, FIRST, case.apply(case.tokens[:, :FIRST], **parts(case, 0, FIRST)))


def continue_and_compare(case: Case, start: FastState | None, length: int, out: tuple[np.ndarray, FastState]) -> None:
    """``out`` is what the first ``length`` tokens gave. The second call is of a program that is compiled already."""
    after = (case.tokens + 1) % VOCAB
    logits, final = case.call(after, out[1])
    masks = {
        name: None if mask is None else np.concatenate([mask[:, :length], mask], axis=1) for name, mask in case.masks.items()
    }
    both = np.concatenate([out[0], logits], axis=1), final
    compare_with_reference(case, start, np.concatenate([case.tokens[:, :length], after], axis=1), masks, both)


def check_token_by_token(case: Case) -> None:
    """T calls of one token, which is a program without a loop over them, give what the reference gives."""
    compare_with_reference(case, case.fast, case.tokens, case.masks, in_pieces(case, range(1, LENGTH)))


def check_splits(case: Case) -> None:
    """Any split of the sequence into calls gives the same logits and final state."""
    logits, final = case.call()
    seen = case.valid_tokens()[..., None]
    for cuts in ([LENGTH // 2], range(1, LENGTH)):
        joined, fast = in_pieces(case, cuts)
        expected = np.where(seen, logits, 0), final
        assert_close((np.where(seen, joined, 0), fast), expected, tolerance(case), f"split at {list(cuts)}: ")


def in_pieces(case: Case, cuts: Sequence[int]) -> tuple[np.ndarray, FastState]:
    """Logits and final state of several calls, each from the state of the one before."""
    fast, pieces = case.fast, []
    for start, stop in zip([0, *cuts], [*cuts, LENGTH], strict=True):
        piece, fast = case.apply(case.tokens[:, start:stop], fast, **parts(case, start, stop))
        pieces.append(piece)
    return np.concatenate(pieces, axis=1), fast


def check_padding(case: Case) -> None:
    """Tokens marked invalid change nothing, wherever they stand: the rest gives what it gives in front of all of them."""
    logits, final = case.call()
    dense = without_invalid(case)
    count = dense.shape[1]
    behind = np.tile(np.arange(LENGTH) < count, (len(dense), 1))
    expected, expected_final = case.call(np.concatenate([dense, dense], axis=1)[:, :LENGTH], valid=behind)
    assert_close(logits[case.valid], expected[:, :count].reshape(-1, VOCAB), tolerance(case), "logits")
    assert_close(final, expected_final, tolerance(case), "state")
    rubbish = np.where(case.valid, case.tokens, (case.tokens + 5) % VOCAB)
    again = case.call(rubbish)
    np.testing.assert_array_equal(again[0][case.valid], logits[case.valid])
    chex.assert_trees_all_equal(again[1], final)


def check_no_padding(case: Case) -> None:
    """The valid tokens alone, in a call of their own, give what they give among the others."""
    logits, final = case.call()
    dense = without_invalid(case)
    expected, expected_final = case.apply(dense, case.fast, valid=np.ones(dense.shape, bool))
    assert_close(logits[case.valid], expected.reshape(-1, VOCAB), tolerance(case), "logits")
    assert_close(final, expected_final, tolerance(case), "state")


def without_invalid(case: Case) -> np.ndarray:
    """The valid tokens, of which every example has equally many."""
    return np.stack([row[keep] for row, keep in zip(case.tokens, case.valid, strict=True)])


def last_reset(case: Case) -> int:
    """Where every example starts its last episode."""
    last = LENGTH // 2
    assert case.reset[:, last].all()
    assert not case.reset[:, last + 1 :].any()
    return last


def check_reset(case: Case) -> None:
    """Nothing before a reset is seen after it, bit for bit."""
    logits, final = case.call()
    last = last_reset(case)
    tokens = np.concatenate([(case.tokens[:, :last] + 3) % VOCAB, case.tokens[:, last:]], axis=1)
    other, other_final = case.call(tokens, jax.tree.map(lambda leaf: leaf + leaf, case.fast))
    np.testing.assert_array_equal(other[:, last:], logits[:, last:])
    chex.assert_trees_all_equal(other_final, final)
    # And it is what an episode of its own gives, from zeros in every leaf of the state. With the same program, so other tokens
    # come after it; if those count, the final state says nothing.
    tail, new = case.tokens[:, last:], case.model.init_fast(len(case.tokens))
    valid = part(case.valid, last)
    valid = None if valid is None else np.concatenate([valid, np.zeros(valid.shape, bool)], axis=1)
    twice = np.concatenate([tail, tail], axis=1)
    alone, alone_final = case.call(twice, new, valid=valid, reset=np.zeros(twice.shape, bool))
    seen = case.valid_tokens()[:, last:, None]
    assert_close(np.where(seen, logits[:, last:], 0), np.where(seen, alone[:, :last], 0), tolerance(case), "logits")
    if valid is not None:
        assert_close(final, alone_final, tolerance(case), "state")


def check_episode_alone(case: Case) -> None:
    """The last episode gives what it gives in a call of its own, in logits and state."""
    logits, final = case.call()
    last = last_reset(case)
    tail, new = case.tokens[:, last:], case.model.init_fast(len(case.tokens))
    alone, alone_final = case.apply(tail, new, valid=part(case.valid, last), reset=np.zeros(tail.shape, bool))
    seen = case.valid_tokens()[:, last:, None]
    assert_close(np.where(seen, logits[:, last:], 0), np.where(seen, alone, 0), tolerance(case), "logits")
    assert_close(final, alone_final, tolerance(case), "state")


def check_mean(case: Case) -> None:
    """``state="mean"`` gives the logits of "full", and the batch mean of S and the activity."""
    full = case.call()[1]
    final = same_logits(case, "mean")
    assert_close(final, mean_over_examples(full), tolerance(case), "mean")


def check_none(case: Case) -> None:
    """``state="none"`` gives the logits of "full", and no state."""
    assert same_logits(case, "none") is None


def same_logits(case: Case, state: str) -> Any:
    """Compare the logits with those of ``state="full"``. Returns the state."""
    logits, _ = case.call()
    seen = case.valid_tokens()[..., None]
    same, final = case.apply(case.tokens, case.fast, state=state, **case.masks)
    assert_close(np.where(seen, same, 0), np.where(seen, logits, 0), tolerance(case), state)
    return final


def check_gradients(case: Case) -> None:
    """Gradients of every input are those of the reference, by finite differences."""
    compare_with_finite_differences(case, case.differentiate()[1])


def check_rounded_gradients(case: Case) -> None:
    """Gradients of every input in bfloat16 are nearly those in float64."""
    actual = case.differentiate()[1]
    expected = build(case.row | {"dtype": "float64"}).differentiate()[1]
    have, want = (jax.tree_util.tree_leaves_with_path(tree) for tree in (actual, expected))
    sizes = [np.linalg.norm(leaf) for _, leaf in want]
    for (path, leaf), (_, other), size in zip(have, want, sizes, strict=True):
        error = np.linalg.norm(np.asarray(leaf, np.float64) - other)
        # Where a gradient nearly cancels, roundings of what cancelled remain.
        assert error <= ROUGH * size + 2**-8 * max(sizes), f"gradient of {jax.tree_util.keystr(path)}"


def compare_with_finite_differences(case: Case, gradient: Any) -> None:
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
        # A step so small finds no slope where the few codes at hand happen to be zero.
        assert unused or slope == 0 or np.any(np.asarray(leaf) != 0), f"gradient of {name} is zero"


def always(row: Row) -> bool:
    """Every row."""
    del row
    return True


def never(row: Row) -> bool:
    """No row."""
    del row
    return False


def exact(row: Row) -> bool:
    """Rows in float64."""
    return row["dtype"] == "float64"


def some_from_none(row: Row) -> bool:
    """Of the quick rows, where to start without a state: in float64 with both masks, and without masks where that is not a state of
    zeros, as it is for a model that goes token by token."""
    return exact(row) and row["masks"] in (("both",) if by_token(row) else ("none", "both"))


def some_mean(row: Row) -> bool:
    """Of the quick rows, where to ask for the mean: tests/models do so without masks, and what goes token by token forms every
    state in any case."""
    return exact(row) and row["masks"] == "both" and not by_token(row)


@dataclasses.dataclass(frozen=True)
class Check:
    """A property and where it is looked for.

    Attributes:
      run: raises AssertionError if a case lacks the property.
      applies: whether the property says anything of a row.
      quick: whether the quick suite looks at such a row; the full one always does.
    """

    run: Callable[[Case], None]
    applies: Callable[[Row], bool] = always
    quick: Callable[[Row], bool] = always


CHECKS = {
    "reference": Check(check_reference),
    "reference from none": Check(check_reference_from_none, quick=never),  # two calls from none are
    "causality by perturbation": Check(check_causality),
    "causality from none": Check(check_causality_from_none, quick=some_from_none),
    # What is masked is so in every dtype, which the other checks see.
    "influence by gradient": Check(check_influence, exact),
    "isolation": Check(check_isolation, lambda row: row["batch"] == 2),
    "two calls": Check(check_two_calls, quick=lambda row: not some_from_none(row)),
    "two calls from none": Check(check_two_calls_from_none, quick=some_from_none),
    "token by token": Check(check_token_by_token, by_token, some_from_none),
    "splits": Check(check_splits, quick=never),
    # A reset at an invalid token has no counterpart without that token.
    "padding": Check(check_padding, lambda row: row["masks"] == "valid"),
    "no padding": Check(check_no_padding, lambda row: row["masks"] == "valid", never),
    "reset": Check(check_reset, lambda row: row["masks"] in ("reset", "both")),
    "episode alone": Check(check_episode_alone, lambda row: row["masks"] in ("reset", "both"), never),
    "mean": Check(check_mean, quick=some_mean),
    "none": Check(check_none, quick=never),
    "gradients": Check(check_gradients, exact),
    "rounded gradients": Check(check_rounded_gradients, lambda row: not exact(row)),
}


def checks_for(row: Row, *, quick: bool) -> list[str]:
    """Names of the checks to run on a row."""
    return [name for name, check in CHECKS.items() if check.applies(row) and (check.quick(row) or not quick)]
