"""Break every write rule on purpose and see whether every check of the contract notices: ``make mutate-contract``.

A fault here is a wrong ``model.apply`` made of right ones, so that it reaches every rule, one from outside the library too, and needs
no other place in the code than that. Most of them damage one array that the rule keeps. What is broken inside a rule or a form are
the patches beside this file (:mod:`tests.mutations.run`).

Prints which faults turn which check red, rule by rule. Exit status 1 if a check that a fault names stays green, or is red without it.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import tests.conftest  # noqa: F401  settings of JAX, before it starts
from bdh_jax import BDH, BDHConfig, FastState
from tests.contract.cases import (
    FACTORS,
    RULES,
    Case,
    Row,
    build,
    config_of,
    examples,
    mean_over_examples,
    memory_leaves,
    where,
    with_leaf,
    without_previous,
)
from tests.contract.checks import CHECKS


class Output(NamedTuple):
    """What the checks look at of what a model returns."""

    logits: jax.Array
    fast: Any


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a model that is to go wrong.

    Attributes:
      row: of the case.
      model: as it should be.
      variables: of ``model.apply``, likewise the rest.
      leaf: of the state, which the fault is to damage.
    """

    row: Row
    model: BDH
    variables: Any
    tokens: jax.Array
    fast: FastState | None
    valid: jax.Array | None
    reset: jax.Array | None
    state: str
    leaf: str

    @property
    def start(self) -> FastState:
        """The state to start from, zeros where none was given."""
        return self.model.init_fast(len(self.tokens)) if self.fast is None else self.fast

    def right(self, **changes: Any) -> Any:
        """What the model returns, for other arguments perhaps."""
        call = dataclasses.replace(self, **changes)
        masks = {"valid": call.valid, "reset": call.reset}
        return call.model.apply(call.variables, call.tokens, call.fast, **masks, state=call.state)

    def damaged(self, fast: FastState, other: FastState) -> FastState:
        """``fast`` with the leaf of ``other``."""
        return with_leaf(fast, other, self.leaf)

    def by_token(self, step: Callable[[Call], Any]) -> Output:
        """``step`` on one token after another, each from the state of the one before."""
        masks = (
            jnp.ones(self.tokens.shape, bool) if self.valid is None else self.valid,
            jnp.zeros(self.tokens.shape, bool) if self.reset is None else self.reset,
        )

        def one(fast: FastState, token: Any) -> tuple[FastState, jax.Array]:
            tokens, valid, reset = (array[:, None] for array in token)
            out = step(dataclasses.replace(self, tokens=tokens, fast=fast, valid=valid, reset=reset))
            return out.fast, out.logits[:, 0]

        fast, logits = jax.lax.scan(one, self.start, jax.tree.map(lambda array: array.T, (jnp.asarray(self.tokens), *masks)))
        return Output(jnp.moveaxis(logits, 0, 1), fast)


def another_rule(call: Call) -> Any:
    """Another rule runs in the place of this one, with the same arrays."""
    return call.right(model=BDH(_with_another_rule(call.row)))


def _with_another_rule(row: Row) -> BDHConfig:
    return config_of(row | {"rule": "delta" if row["rule"] == "hebbian" else "hebbian"})


def _has_the_arrays_of_another_rule(row: Row) -> bool:
    configs = config_of(row), _with_another_rule(row)
    one, other = (jax.eval_shape(functools.partial(BDH(config).init_fast, 1)) for config in configs)
    return jax.tree.structure(one) == jax.tree.structure(other)


def larger_writes(call: Call) -> Any:
    """η is half as large again as configured."""
    config = call.model.config
    fast = dataclasses.replace(config.fast, learning_rate=1.5 * config.fast.learning_rate)
    return call.right(model=BDH(dataclasses.replace(config, fast=fast)))


def future_seen(call: Call) -> Any:
    """The tokens read what was written by all of them."""
    return call.right(fast=call.damaged(call.start, call.right(fast=call.start).fast))


def other_example_read(call: Call) -> Any:
    """Every example starts from the array of another."""
    others = [*range(1, len(call.tokens)), 0]
    return call.right(fast=call.damaged(call.start, examples(call.start, others)))


def not_carried(call: Call) -> Any:
    """The next call finds zeros."""
    out = call.right()
    return Output(out.logits, call.damaged(out.fast, jax.tree.map(jnp.zeros_like, out.fast)))


def previous_not_carried(call: Call) -> Any:
    """The first token of a call does not know the address of the one before."""
    return call.right(fast=without_previous(call.start))


def invalid_written(call: Call) -> Any:
    """Invalid tokens write, too."""

    def step(token: Call) -> Any:
        out = token.right()
        return Output(out.logits, token.damaged(out.fast, token.right(valid=None).fast))

    return call.by_token(step)


def reset_survived(call: Call) -> Any:
    """A new episode starts with what the one before has written."""

    def step(token: Call) -> Any:
        empty = jax.tree.map(jnp.zeros_like, token.fast)
        start = where(token.reset[:, 0], token.damaged(empty, token.fast), token.fast)
        return token.right(fast=start, reset=None)

    return call.by_token(step)


def first_example_for_the_mean(call: Call) -> Any:
    """The mean is the first example's."""
    out = call.right(state="full")
    full = examples(out.fast, [0] * len(call.tokens))
    return Output(out.logits, mean_over_examples(full) if call.state == "mean" else out.fast)


def none_starts_anew(call: Call) -> Any:
    """Where no state is wanted, none is read."""
    return call.right(fast=None) if call.state == "none" else call.right()


def gradient_stopped(call: Call) -> Any:
    """No gradient reaches the state at the start."""
    return call.right(fast=call.damaged(call.start, jax.lax.stop_gradient(call.start)))


@dataclasses.dataclass(frozen=True)
class Fault:
    """A way to go wrong.

    Attributes:
      apply: what the model does instead.
      checks: which of them have to notice.
      each_leaf: whether it damages one array of what the rule keeps, and is tried on each.
      applies: whether a row can have it.
    """

    apply: Callable[[Call], Any]
    checks: tuple[str, ...]
    each_leaf: bool = True
    applies: Callable[[Row], bool] = lambda row: True


PREVIOUS = ("reference", "two calls", "two calls from none", "token by token", "splits")
FAULTS = {
    "another rule": Fault(
        another_rule,
        ("reference", "reference from none", "two calls", "two calls from none", "token by token", "gradients"),
        each_leaf=False,
        applies=_has_the_arrays_of_another_rule,
    ),
    "larger writes": Fault(
        larger_writes,
        ("reference", "reference from none", "two calls", "two calls from none", "token by token", "gradients"),
        each_leaf=False,
    ),
    "future seen": Fault(future_seen, ("causality by perturbation", "causality from none", "influence by gradient")),
    "other example read": Fault(other_example_read, ("isolation",)),
    "not carried": Fault(not_carried, ("two calls", "two calls from none", "token by token", "splits")),
    "previous not carried": Fault(previous_not_carried, PREVIOUS, each_leaf=False),
    "invalid written": Fault(invalid_written, ("padding", "no padding")),
    "reset survived": Fault(reset_survived, ("reset", "episode alone")),
    "first for the mean": Fault(first_example_for_the_mean, ("mean",), each_leaf=False),
    "none starts anew": Fault(none_starts_anew, ("none",), each_leaf=False),
    "gradient stopped": Fault(gradient_stopped, ("gradients", "rounded gradients")),
}


@dataclasses.dataclass(frozen=True)
class Broken:
    """A model with a fault, to be put in the place of a case's."""

    row: Row
    model: BDH
    fault: Fault
    leaf: str

    @property
    def config(self) -> BDHConfig:
        return self.model.config

    def init_fast(self, batch_size: int) -> FastState:
        """As of the model."""
        return self.model.init_fast(batch_size)

    def apply(
        self,
        variables: Any,
        tokens: jax.Array,
        fast: FastState | None = None,
        *,
        valid: jax.Array | None = None,
        reset: jax.Array | None = None,
        state: str = "full",
    ) -> Any:
        """As of the model, but wrong."""
        return self.fault.apply(Call(self.row, self.model, variables, tokens, fast, valid, reset, state, self.leaf))


def plan(rule: str) -> list[tuple[Row, list[str]]]:
    """Small rows of a rule and what to check of each: token by token, and in a matrix form if there is one, whatever applies; of the
    rows after those, with invalid tokens and in bfloat16, what applies to none before."""
    first = {name: values[0] for name, values in FACTORS.items()}
    first |= {"rule": rule, "implementation": "recurrent", "scope": "one", "norm": "l2", "heads": 2, "dtype": "float64"}
    matrix = {"implementation": next((form for form in RULES[rule].forms if form != "recurrent"), "recurrent")}
    made = [first, first | matrix | {"masks": "both"}, first | {"masks": "valid"}, first | matrix | {"dtype": "bfloat16"}]
    planned: list[tuple[Row, list[str]]] = []
    for number, row in enumerate(made):
        seen = {check for _, checks in planned for check in checks} if number >= 2 else set()
        planned.append((row, [name for name, check in CHECKS.items() if check.applies(row) and name not in seen]))
    return planned


def trials(row: Row, checks: Sequence[str]) -> Iterator[tuple[str, Fault, str, list[str]]]:
    """Faults to try on a row: a name, the fault, the leaf that it damages, and which of the checks should notice."""
    leaves = memory_leaves(jax.eval_shape(functools.partial(BDH(config_of(row)).init_fast, 1)))
    for name, fault in FAULTS.items():
        noticed_by = [check for check in fault.checks if check in checks]
        if noticed_by and fault.applies(row):
            for leaf in leaves if fault.each_leaf else leaves[:1]:
                yield (f"{leaf} {name}" if fault.each_leaf and len(leaves) > 1 else name), fault, leaf, noticed_by


class Result(NamedTuple):
    """Of one check on one row with one fault, or with none."""

    rule: str
    check: str
    fault: str | None
    red: bool


def is_red(case: Case, check: str) -> bool:
    """Whether a check fails."""
    try:
        CHECKS[check].run(case)
    except AssertionError:
        return True
    return False


def try_rule(rule: str) -> list[Result]:
    """Every check on a rule's rows, without a fault and with each."""
    results = []
    with jax.enable_x64(True):
        for row, checks in plan(rule):
            case = build(row)
            results += [Result(rule, check, None, is_red(case, check)) for check in checks]
            for name, fault, leaf, noticed_by in trials(row, checks):
                broken = dataclasses.replace(case, model=Broken(row, case.model, fault, leaf), stepping=None)
                results += [Result(rule, check, name, is_red(broken, check)) for check in noticed_by]
            jax.clear_caches()
    return results


def table(results: Sequence[Result], rules: Sequence[str]) -> str:
    """Markdown: for every check and rule the faults that turn the check red."""
    names = list(dict.fromkeys(result.fault for result in results if result.fault is not None and result.red))
    letters = {name: chr(ord("A") + number) if number < 26 else f"A{number - 26}" for number, name in enumerate(names)}
    lines = [f"| check | {' | '.join(rules)} |", f"|---|{'---|' * len(rules)}"]
    for check in CHECKS:
        cells = []
        for rule in rules:
            found = {r.fault for r in results if r.rule == rule and r.check == check and r.red and r.fault is not None}
            cells.append(" ".join(letters[name] for name in names if name in found) or "none")
        lines.append(f"| {check} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {letter}: {name}" for name, letter in letters.items())])


def problems(results: Sequence[Result]) -> list[str]:
    """What should not be: a check that is red without a fault, or green in spite of one on every row of a rule."""
    found: dict[tuple[str, str, str | None], bool] = {}
    for rule, check, fault, red in results:
        found[rule, check, fault] = red or found.get((rule, check, fault), False)
    return [
        f"{rule}: {check} is {'red without a fault' if fault is None else f'green in spite of {fault!r}'}"
        for (rule, check, fault), red in found.items()
        if red == (fault is None)
    ]


def import_all(modules: Sequence[str]) -> None:
    """Have rules from outside the library register themselves."""
    for module in modules:
        importlib.import_module(module)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", nargs="*", help=f"rules to try; all by default: {', '.join(RULES)}")
    parser.add_argument("--modules", nargs="*", default=[], help="test modules that register rules from outside the library")
    parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="how many to run side by side")
    parser.add_argument("--write", type=Path, help="file to write the table to as well")
    arguments = parser.parse_args()
    import_all(arguments.modules)
    unknown = set(arguments.rules) - set(RULES)
    if unknown:
        parser.error(f"no such rule: {', '.join(sorted(unknown))}; there are {', '.join(RULES)}")
    chosen = [rule for rule in RULES if not arguments.rules or rule in arguments.rules]
    start, results = time.monotonic(), []
    with multiprocessing.get_context("spawn").Pool(arguments.jobs, import_all, (arguments.modules,)) as pool:
        for found in pool.imap_unordered(try_rule, chosen):
            results += found
            print(f"{found[0].rule}: {len(found)} checks ({time.monotonic() - start:.0f} s)", file=sys.stderr, flush=True)
    text = table(results, chosen)
    print(text)
    if arguments.write:
        arguments.write.write_text(HEADER + text + "\n", encoding="utf-8")
    for problem in problems(results):
        print(problem)
    return 1 if problems(results) else 0


HEADER = """# What turns each check of the contract red

Made by `make mutate-contract`: rows are the checks of tests/contract/checks.py, columns the write rules, and the letters the faults
below, each a wrong `model.apply` (tests/mutations/contract.py).

"""

if __name__ == "__main__":
    sys.exit(main())
