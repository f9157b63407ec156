"""Training of any task: one jitted step, an optimiser, checkpoints, metrics, and the loop that joins them."""

from bdh_jax.training.checkpoint import CheckpointError, load
from bdh_jax.training.loop import Interrupted, NonFiniteError, run, train
from bdh_jax.training.optimizer import make_optimizer, make_schedule
from bdh_jax.training.step import TrainState, gradients, init_state, loss_fn, make_predict, make_train_step, put_batch

__all__ = [
    "CheckpointError",
    "Interrupted",
    "NonFiniteError",
    "TrainState",
    "gradients",
    "init_state",
    "load",
    "loss_fn",
    "make_optimizer",
    "make_predict",
    "make_schedule",
    "make_train_step",
    "put_batch",
    "run",
    "train",
]
