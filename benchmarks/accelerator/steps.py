"""One training step of the model of ``text:official``: what ``bdh_jax.training.step`` compiles, whose room needs libraries that may not
be there. Tests hold it to that step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bdh_jax.models.bdh import BDH, BDHConfig
from bdh_jax.training.optimizer import make_optimizer
from benchmarks.accelerator.sizes import OPTIMIZER, STEPS


class Training(NamedTuple):
    """A training: its weights, what its optimiser remembers, and how many steps it has made."""

    slow: Any
    optimizer: Any
    step: jax.Array


def random_weights(config: BDHConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of the model's initial scale, on the host; those of a head (rates) as the model starts them."""
    rng, model = np.random.default_rng(seed), BDH(config)
    found = {}
    for name, weight in model.declared_slow().items():
        if len(weight.shape) >= 2:
            found[name] = rng.standard_normal(weight.shape, np.float32) * np.float32(config.init_std)
        else:
            found[name] = np.asarray(weight.init(jax.random.key(0), weight.shape, weight.dtype))
    return found


def random_tokens(batch: int, length: int, seed: int = 1) -> np.ndarray:
    """[B, T + 1] bytes."""
    return np.random.default_rng(seed).integers(0, 256, (batch, length + 1)).astype(np.int32)


def begin(slow: Any) -> Training:
    """A training from these weights."""
    slow = jax.tree.map(jnp.array, slow)
    return Training(slow, jax.jit(make_optimizer(OPTIMIZER, STEPS).init)(slow), jnp.zeros((), jnp.int32))


def loss_of(config: BDHConfig) -> Callable[..., jax.Array]:
    """(slow, tokens [B, T + 1], dropout's key or None) → mean loss of all positions, in nats."""
    model = BDH(config)

    def loss(slow: Any, tokens: jax.Array, key: jax.Array | None = None) -> jax.Array:
        rngs = None if key is None else {"dropout": key}
        given = {"deterministic": key is None, "rngs": rngs}
        logits = model.apply({"params": slow}, tokens[:, :-1], state="none", **given).logits
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

    return loss


def train_step(config: BDHConfig) -> Callable[[Training, jax.Array, jax.Array], tuple[Training, jax.Array]]:
    """(training, tokens [B, T + 1], key) → (training, loss). The training is given up."""
    loss, optimizer = loss_of(config), make_optimizer(OPTIMIZER, STEPS)

    def step(training: Training, tokens: jax.Array, key: jax.Array) -> tuple[Training, jax.Array]:
        step_key = jax.random.fold_in(key, training.step) if config.dropout > 0 else None
        value, gradient = jax.value_and_grad(loss)(training.slow, tokens, step_key)
        updates, state = optimizer.update(gradient, training.optimizer, training.slow)
        return Training(optax.apply_updates(training.slow, updates), state, training.step + 1), value

    return jax.jit(step, donate_argnums=0)


def abstract(tree: Any) -> Any:
    """Shapes and dtypes, to lower a program with."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), leaf.dtype), tree)
