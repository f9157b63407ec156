"""Settings of the training loop and its optimiser."""

from __future__ import annotations

import dataclasses
from typing import Literal

from bdh_jax.config.base import check_types, require, require_choice, require_sizes
from bdh_jax.config.identity import HOW
from bdh_jax.config.options import Options
from bdh_jax.parallel.mesh import MeshConfig

Loss = Literal["answer", "all", "weights"]
Save = Literal["auto", "blocking", "background"]


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, gradient clipping, weight decay on matrices only."""

    learning_rate: float = 1e-3
    """Peak rate."""
    warmup_steps: int = 100
    """Steps over which the rate rises from zero to its peak."""
    final_fraction: float = 0.0
    """The cosine ends at this fraction of the peak rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After the warm-up: the rate falls along a cosine to its final fraction, or stays at the peak."""
    weight_decay: float = 0.1
    """Share of a matrix that a step takes off, times the rate of the step."""
    b1: float = 0.9
    """Decay of the mean of the gradients (β₁ of Adam)."""
    b2: float = 0.999
    """Decay of the mean of their squares (β₂ of Adam)."""
    eps: float = 1e-8
    """Added to the root of that mean before it divides (ε of Adam)."""
    clip_norm: float | None = 1.0
    """Global gradient norm limit; None does not clip."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be positive")
        require(self.warmup_steps >= 0, f"optimizer.warmup_steps={self.warmup_steps} must be ≥ 0")
        require(0 <= self.final_fraction <= 1, f"optimizer.final_fraction={self.final_fraction} must lie in [0, 1]")
        require_choice("optimizer.schedule", self.schedule, Literal["cosine", "constant"])
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must be ≥ 0")
        require(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"optimizer.b1={self.b1}, b2={self.b2} must lie in [0, 1)")
        require(self.eps > 0, f"optimizer.eps={self.eps} must be positive")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"optimizer.clip_norm={self.clip_norm} must be positive or None"
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The training loop."""

    steps: int = 1000
    """Optimiser steps."""
    batch_size: int = 32
    """Sequences per optimiser step, over all devices and accumulation slices."""
    accumulation: int = 1
    """Slices the batch is cut into; gradients are averaged over them before the update."""
    loss: Loss = "answer"
    """Positions that are trained: the answer, every valid position, or the weights the task gives."""
    hooks: tuple[str, ...] = ()
    """What is added to the step: names ``module:factory`` of ``factory(model, **options) -> Hooks`` (``bdh_jax.training.hooks``)."""
    hook_options: Options = Options()
    """Options of these factories, by name."""
    carry_state: bool = False
    """Start each step from the fast state that the step before left in the same row, without a gradient into it: truncated
    backpropagation through time. For tasks whose rows go on from batch to batch."""
    log_contributions: bool = dataclasses.field(default=False, metadata=HOW)
    """With each evaluation, log what fast weights and synapse add to the output of a layer, relative to the decoder's part."""
    evaluate_every: int = 100
    """Steps from one evaluation to the next; the last step is evaluated in any case. They decide which checkpoint is
    the best one."""
    stop_at: float | None = None
    """End with the first evaluation whose primary score, in [0, 1], is at least so high, instead of after all ``steps``."""
    checkpoint_every: int = dataclasses.field(default=200, metadata=HOW)
    """Steps from one save to the next; the best evaluation and the end are saved in any case."""
    keep_every: int | None = dataclasses.field(default=None, metadata=HOW)
    """Checkpoints of steps that this divides are kept for good; None keeps the last two and the best one."""
    save: Save = dataclasses.field(default="auto", metadata=HOW)
    """"blocking": a step waits until the checkpoint before it is written and read back. "background": only until it is copied to the host; a
    kill then costs the steps of the write as well. "auto" goes by the state's size: in the background from 64 MiB on. Evaluations, signals
    and the end wait always."""
    log_every: int = dataclasses.field(default=10, metadata=HOW)
    """Steps from one line of the metrics to the next."""
    init_from: str | None = None
    """Start from the slow weights of another run: its folder, for the newest checkpoint, or ``FOLDER@STEP``. Optimiser, step and data
    begin anew (``bdh_jax.training.init_from``). A run that goes on does not read them again."""

    def __post_init__(self) -> None:
        check_types(self)
        require_sizes(
            self, ("steps", "batch_size", "accumulation", "evaluate_every", "checkpoint_every", "log_every"), "train."
        )
        require(
            self.batch_size % self.accumulation == 0,
            f"train.batch_size={self.batch_size} is not divisible by train.accumulation={self.accumulation}",
        )
        require_choice("train.loss", self.loss, Loss)
        require_choice("train.save", self.save, Save)
        require(
            self.stop_at is None or 0 < self.stop_at <= 1, f"train.stop_at={self.stop_at} must lie in (0, 1], or be None"
        )
        require(
            self.keep_every is None or self.keep_every >= 1,
            f"train.keep_every={self.keep_every} must be at least 1, or None to keep the last two and the best",
        )
        require(
            self.init_from != "",
            "train.init_from='' is empty (is a variable unset?); name the folder of a run, or leave train.init_from out",
        )
        object.__setattr__(self, "hook_options", Options.of("train.hook_options", self.hook_options))
        for name in self.hooks:
            require(
                ":" in name and self.hooks.count(name) == 1,
                f"train.hooks={self.hooks}: {name!r} must be module:factory, named once",
            )
        require(
            not self.carry_state or self.accumulation == 1,
            f"train.carry_state=True with train.accumulation={self.accumulation}: the state of all rows is held anyway, so slices save "
            "no memory; set train.accumulation=1",
        )

    def check_mesh(self, mesh: MeshConfig) -> None:
        """Check that a slice of the batch can be spread over a mesh.

        Raises:
          ConfigError: if its sequences do not divide.
        """
        rows = self.batch_size // self.accumulation
        require(
            mesh.data == -1 or rows % mesh.data == 0,
            f"mesh.data={mesh.data} does not divide the {rows} sequences of a slice (train.batch_size={self.batch_size}, "
            f"train.accumulation={self.accumulation})",
        )
