"""What a consolidation function is, and how one is checked and run.

Two forms are accepted everywhere:

* a plain function ``(slow, fast, activity) -> slow``;
* a pair with a history of its own, in the shape of an optax transformation: :class:`Consolidation` with ``init(slow) -> history``
  and ``update(slow, fast, activity, history) -> (slow, history)``.

Both are pure and jittable. ``slow`` is a dict of arrays, ``fast`` a :class:`FastState`, ``activity`` an :class:`Activity`. *Memory*
always means the fast weights S; what a function remembers of earlier episodes is its *history*.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp

from bdh_jax.config import ConfigError
from bdh_jax.config.files import describe
from bdh_jax.fast_weights.state import Activity, FastState
from bdh_jax.types import Slow

History = Any
Plain = Callable[[Slow, FastState, Activity], Slow]


class ConsolidationError(ConfigError):
    """A consolidation function that cannot be used. The message names the leaf, what is wrong with it and the remedy."""


class Consolidation(NamedTuple):
    """A consolidation function that remembers something between episodes."""

    init: Callable[[Slow], History]
    """slow → history, a pytree of arrays."""
    update: Callable[[Slow, FastState, Activity, History], tuple[Slow, History]]
    """(slow, fast, activity, history) → (slow, history)."""
    axes: Callable[[Slow], Any] | None = None
    """slow → a tree like the history, with a tuple of logical axes ("layer", "head", "neuron", "model", …) for each array: on a mesh
    they are split as the model's are. Without it every device holds the whole history."""


@runtime_checkable
class _HasInitAndUpdate(Protocol):
    @property
    def init(self) -> Callable[..., Any]: ...

    @property
    def update(self) -> Callable[..., Any]: ...


Function = Plain | Consolidation
Make = TypeVar("Make", bound=Callable[..., Function])
_MARK = "makes_a_consolidation_function"


def factory(make: Make) -> Make:
    """Mark a function that makes a consolidation function, so that it is never taken for one itself."""
    setattr(make, _MARK, True)
    return make


def is_factory(function: Any) -> bool:
    """Whether :func:`factory` marked it."""
    return getattr(function, _MARK, False)


def as_consolidation(function: Function) -> Consolidation:
    """Bring either form into the form with a history; that of a plain function is ``()``.

    Args:
      function: a plain function, or anything with ``init`` and ``update``.

    Raises:
      ConsolidationError: if it is neither, or a factory that was not called.
    """
    if isinstance(function, _HasInitAndUpdate):
        return Consolidation(function.init, function.update, getattr(function, "axes", None))
    if not callable(function):
        raise ConsolidationError(
            f"{function!r} is no consolidation function: give a callable (slow, fast, activity) -> slow, or an object with "
            "init(slow) and update(slow, fast, activity, history)"
        )
    if is_factory(function):
        name = function.__name__
        raise ConsolidationError(f"{name} makes a consolidation function and is none itself: call it, {name}(...)")
    try:
        inspect.signature(function).bind("slow", "fast", "activity")
    except TypeError as error:
        raise ConsolidationError(
            f"{getattr(function, '__name__', function)!r} cannot be called as (slow, fast, activity) -> slow: {error}. Use optax's shape, "
            "Consolidation(init, update), for a function that remembers something"
        ) from None
    except ValueError:  # a callable of C has no signature
        pass

    def update(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        return function(slow, fast, activity), history

    return Consolidation(lambda slow: (), update)


def history_nbytes(history: History) -> int:
    """Bytes of what a consolidation function remembers."""
    shapes = jax.tree.leaves(jax.eval_shape(lambda: jax.tree.map(jnp.zeros_like, history)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


@dataclasses.dataclass(frozen=True)
class Consolidator:
    """A consolidation function that was checked against the trees it will see, and jitted.

    Built by :func:`make_consolidator`. Calling it returns new trees; nothing is changed in place.
    """

    consolidation: Consolidation
    _jitted: Callable

    def init(self, slow: Slow) -> History:
        """The history before the first episode."""
        return self.consolidation.init(slow)

    def __call__(self, slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History]:
        """Consolidate one episode (or the mean of a batch of them).

        Args:
          slow: parameters by name.
          fast: the state at the episode's end.
          activity: its activity.
          history: from :meth:`init` or from the last call.

        Returns:
          The next slow weights and history.

        Raises:
          ConsolidationError: if a number that came out is not finite though all that went in were; names the leaf.
        """
        new_slow, new_history, finite = self._jitted(slow, fast, activity, history)
        bad = [name for name, is_finite in jax.device_get(finite).items() if not is_finite]
        if bad:
            given = [name for name, ok in finite_leaves({"slow": slow, "fast": fast, "history": history}).items() if not ok]
            cause = f"already so before: {given[0]}" if given else "what it was given is finite; try a smaller rate"
            raise ConsolidationError(f"consolidation made {bad[0]} NaN or infinite ({cause})")
        return new_slow, new_history


def make_consolidator(function: Function, slow: Slow, fast: FastState) -> Consolidator:
    """Check a consolidation function on the shapes it will see, and jit it.

    Args:
      function: either form.
      slow: parameters by name, as arrays or ``jax.ShapeDtypeStruct``.
      fast: a state of the shapes that will come, likewise.

    Raises:
      ConsolidationError: as :func:`check`.
    """
    consolidation = as_consolidation(function)
    check(consolidation, slow, fast)

    @jax.jit
    def run(slow: Slow, fast: FastState, activity: Activity, history: History) -> tuple[Slow, History, dict[str, jax.Array]]:
        new_slow, new_history = consolidation.update(slow, fast, activity, history)
        return new_slow, new_history, finite_leaves({"slow": new_slow, "history": new_history})

    return Consolidator(consolidation, run)


_PARTS = ("attention", "memory", "gram", "previous_address", "previous_code", "position", "activity")
"""Of a state; a batch mean has some of them only."""


def check(function: Function, slow: Slow, fast: FastState) -> None:
    """Refuse a function that does not return trees like those it was given, or that cannot be traced.

    Nothing is computed.

    Args:
      function: either form.
      slow: parameters by name, as arrays or ``jax.ShapeDtypeStruct``.
      fast: the state it will see, likewise, with its activity.

    Raises:
      ConsolidationError: names the leaf whose presence, shape or dtype is wrong, or says that the function is not jittable.
    """
    consolidation = as_consolidation(function)
    if not fast.has_memory:
        raise ConsolidationError("there is nothing to consolidate: the model has no fast weights (fast.enabled=False)")
    try:
        history = jax.eval_shape(consolidation.init, slow)
        result = jax.eval_shape(lambda s, f, h: consolidation.update(s, f, f.activity, h), slow, fast, history)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
        jax.errors.UnexpectedTracerError,
    ) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConsolidationError(
            "the consolidation function is not jittable: it uses the value of a traced array in Python (if, int, float, "
            f"range, a mask as an index, numpy). Use jnp.where, jax.lax.cond or jax.lax.top_k instead. JAX says: {reason}"
        ) from error
    except KeyError as error:
        name = error.args[0] if error.args else None
        if name in slow:
            raise
        hint = "build the model with FastWeightConfig(synapse=True)" if name == "synapse" else "name one of these"
        raise ConsolidationError(
            f"the consolidation function asks for {name!r} ({describe(error)}), and the slow weights are {', '.join(slow)}; {hint}"
        ) from error
    except SystemExit as error:
        raise ConsolidationError(f"the consolidation function ended the program: {describe(error)}") from error
    except (AttributeError, TypeError) as error:
        if "NoneType" not in str(error) and not isinstance(getattr(error, "obj", None), type(fast)):
            raise
        parts = jax.eval_shape(lambda fast: {name: getattr(fast, name, None) for name in _PARTS}, fast)
        present = [name for name in _PARTS if parts[name] is not None]
        raise ConsolidationError(
            f"the consolidation function uses a part of the state that is None here ({error}). Present are fast.{', fast.'.join(present)}"
        ) from error
    if not (isinstance(result, tuple) and len(result) == 2):
        raise ConsolidationError(f"update returned a {type(result).__name__}; it must return the pair (slow, history)")
    for name, given, returned in (("slow", slow, result[0]), ("history", history, result[1])):
        check_same_tree("the consolidation function", name, given, returned)


def check_same_tree(who: str, name: str, given: Any, returned: Any) -> None:
    """Refuse a tree that differs from the one that was given in a leaf's presence, shape or dtype, or in its structure.

    Args:
      who: returned it, for messages.
      name: of the tree.
      given, returned: pytrees of arrays or their shapes.

    Raises:
      ConsolidationError: names the leaf.
    """
    before, after = (
        {name + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (given, returned)
    )
    for leaf in before:
        if leaf not in after:
            raise ConsolidationError(f"{who} returned no {leaf}; return every leaf it was given")
    for leaf in after:
        if leaf not in before:
            raise ConsolidationError(f"{who} returned {leaf}, which it was not given")
        if jnp.shape(after[leaf]) != jnp.shape(before[leaf]):
            raise ConsolidationError(
                f"{who} returned {leaf} with shape {jnp.shape(after[leaf])}; it was given {jnp.shape(before[leaf])}"
            )
        if after[leaf].dtype != before[leaf].dtype:
            raise ConsolidationError(
                f"{who} returned {leaf} as {after[leaf].dtype}; it was given {before[leaf].dtype}. "
                f"Add .astype({leaf.split('[')[0]}[...].dtype)"
            )
    if jax.tree.structure(given) != jax.tree.structure(returned):
        raise ConsolidationError(
            f"{who} returned {name} as {jax.tree.structure(returned)}; it was given {jax.tree.structure(given)}"
        )


def finite_leaves(trees: dict[str, Any]) -> dict[str, jax.Array]:
    """Leaf path → whether all its numbers are finite, for leaves of floating point numbers.

    Args:
      trees: name that paths begin with → pytree of arrays.
    """
    return {
        name + jax.tree_util.keystr(path): jnp.all(jnp.isfinite(leaf))
        for name, tree in trees.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
