"""The training loop: steps, evaluations, checkpoints, interruptions. It knows no particular task, model or experiment."""

from __future__ import annotations

import collections
import dataclasses
import logging
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from bdh_jax.config import ConfigError
from bdh_jax.config.paths import check_writable
from bdh_jax.models.base import count_parameters
from bdh_jax.parallel.mesh import make_mesh
from bdh_jax.runs.checkpoint import Checkpoints, RunProgress
from bdh_jax.runs.folder import (
    BELOW,
    CHECKPOINTS,
    METRICS,
    RESULTS,
    RUN,
    CheckpointError,
    changes,
    check_text,
    finished,
    read_run,
    text_digest,
    trained_texts,
    write_json,
    write_text,
)
from bdh_jax.runs.lock import only_writer
from bdh_jax.runs.provenance import describe_start
from bdh_jax.runs.reporter import Reporter, read_rows
from bdh_jax.runs.signals import name_of, noting
from bdh_jax.runs.weights_file import WEIGHTS
from bdh_jax.tasks.base import Batch, Task
from bdh_jax.tasks.scores import Evaluation
from bdh_jax.training.hooks import make_hooks
from bdh_jax.training.init_from import check_same_start, read_start
from bdh_jax.training.optimizer import make_optimizer
from bdh_jax.training.setup import Setup
from bdh_jax.training.state import TrainState, abstract_state, init_state, restored_state, saved_trees, state_from
from bdh_jax.training.step import make_keys, make_predict, make_train_step, put_batch
from bdh_jax.training.throughput import peak_flops, peak_memory, training_flops_per_token

LARGE = 64 * 2**20
"""Bytes of a state from which on ``train.save="auto"`` saves in the background: a smaller one is written in a fraction of a second."""
MEASURED_ROWS = 8
"""Rows of a batch on which ``Setup.measure`` looks, about: what it collects is held for all layers at once."""
_LOGGER = logging.getLogger("bdh_jax")


class Interrupted(Exception):
    """A signal (:mod:`bdh_jax.runs.signals`) stopped the training; everything was saved first.

    Attributes:
      signal_number: which one.
    """

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


class NonFiniteError(Exception):
    """Loss or gradient became NaN or infinite. The message names the step and the last good checkpoint.

    Attributes:
      step: the step.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


def train(setup: Setup, task: Task, workdir: Path) -> dict[str, Any]:
    """Train one seed, or go on where its folder left off.

    The final evaluation is of the last parameters; the best ones, by the evaluations during training, are kept as a
    checkpoint (:func:`bdh_jax.runs.checkpoint.load_slow`) but not reported: they were chosen by the very scores.

    Args:
      setup: what to train, and how.
      task: what on, made for the seed and batch size of ``setup``.
      workdir: the run's folder.

    Returns:
      The results, as written to ``results.json``.

    Raises:
      ConfigError: if the setup cannot run here, or another process writes to ``workdir``; nothing has been written then.
      CheckpointError: if ``workdir`` holds a run of another configuration, or a checkpoint that cannot be read.
      NonFiniteError: if loss or gradient is not finite. That state is never saved.
      Interrupted: after Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, once the state is saved. A second Ctrl-C aborts at once.
    """
    with only_writer(workdir):
        return train_in(workdir, setup, lambda: task)[0]


def train_in(
    workdir: Path, setup: Setup, make_task: Callable[[], Task], others: Sequence[Path] = ()
) -> tuple[dict[str, Any], int | None]:
    """As :func:`train`, in a folder that the caller holds (:func:`bdh_jax.runs.lock.only_writer`).

    Args:
      workdir: the run's folder.
      setup: what to train, and how.
      make_task: makes the task. A finished run does not call it: the task's text may be gone by then. But if it lies elsewhere now than
        the folder says, it must be the same text.
      others: folders of the same run, which must have the same text, and have started from the same weights of another one.

    Returns:
      The results, and the signal that came too late to interrupt anything, or None.
    """
    results = finished(workdir, setup.record)
    if results is not None and not changes(results["config"], setup.record).where:
        return results, None
    check_writable(workdir / RUN, BELOW)
    task = make_task()
    for folder, text in trained_texts(others if results is None else [workdir]).items():
        check_text(folder, text, task.fingerprint)
    if results is not None:
        return results, None
    if task.vocab_size > setup.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size={setup.model.vocab_size} is too small: the task has token ids up to {task.vocab_size - 1}; "
            f"set model.vocab_size={task.vocab_size} or more"
        )
    training = _Training(setup, task, workdir, others)
    return training.run(), training.signal_number


class _Training:
    """One run from its start or last checkpoint to its end. Built without writing anything."""

    def __init__(self, setup: Setup, task: Task, workdir: Path, others: Sequence[Path]):
        self._task, self._workdir, self._others = task, workdir, others
        self._started = time.perf_counter()
        self._mesh = make_mesh(setup.mesh)
        # data=-1 is a number now, which has to divide what a configuration's number has to.
        self._setup = dataclasses.replace(setup, mesh=dataclasses.replace(setup.mesh, data=self._mesh.shape["data"]))
        self._model = setup.model.build(self._mesh if self._mesh.size > 1 else None)
        self._optimizer = make_optimizer(setup.optimizer, setup.train.steps)
        self._hooks = make_hooks(setup.hooks, self._model)
        self._init_key, self._step_key = make_keys(setup.seed, self._mesh)
        self._train_step = make_train_step(
            self._model,
            self._optimizer,
            setup,
            self._mesh,
            hooks=self._hooks,
            losses=task.losses,
            answers=task.most_answers,
        )
        self._flops_per_token = training_flops_per_token(setup.model, task.sequence_length)
        self._peak = None if self._flops_per_token is None else peak_flops(setup.model, list(self._mesh.devices.flat))
        self._measure = None if setup.measure is None else setup.measure(self._model)
        self._predict = make_predict(self._model, self._mesh)
        self._checkpoints = Checkpoints(workdir, setup.record, setup.train.keep_every)
        self._carried_rows = setup.train.batch_size if setup.train.carry_state else None
        self._target = abstract_state(
            self._model, self._optimizer, self._mesh, self._hooks, self._carried_rows, setup.mesh.fsdp
        )
        # Traces the step (the trace is kept): what cannot run here says so before anything is written.
        self._train_step.trace(self._target, self._put(task.batch(0)), self._step_key)

    @property
    def signal_number(self) -> int | None:
        """The signal that came during :meth:`run`, if any did. Of several processes none is told alone."""
        return None if jax.process_count() > 1 else self._signals.number

    def _put(self, batch: Batch) -> Batch:
        return put_batch(batch, self._mesh, may_reset=self._task.may_reset)

    def run(self) -> dict[str, Any]:
        try:
            state, progress = self._begin() if self._checkpoints.last_step is None else self._go_on()
        except BaseException:
            self._checkpoints.close()
            raise
        self._clock = _Clock(progress.training_seconds, progress.tokens)
        self._seconds_before = progress.seconds
        steps = self._setup.train.steps
        self._reporter = Reporter(
            self._workdir,
            steps=steps,
            start=progress.step,
            title=f"seed {self._setup.seed}",
            accuracy_name=self._task.accuracy_name,
        )
        self._reporter.say(self._described(progress.step))
        try:
            with noting(together=jax.process_count() > 1) as self._signals:
                evaluation, last = self._train_and_evaluate(state, progress)
        finally:
            try:
                self._reporter.close()
            finally:
                self._checkpoints.close()
        best = self._checkpoints.best
        if best is None:
            raise CheckpointError(
                f"{self._workdir} has lost the checkpoint of its last evaluation; start again in another folder"
            )
        results = {
            "config": self._setup.record.config,
            "seed": self._setup.seed,
            "steps": last,
            "seconds": self._progress(last, evaluated=True).seconds,
            "tokens_per_second": self._clock.rate(),
            "mfu": self._share_of_peak(),
            "peak_memory_bytes": peak_memory(),
            "primary": evaluation.primary,
            "evaluation": {row.name: row.to_dict() for row in evaluation.rows},
            "note": evaluation.note,
            "best": {"step": best[0], "primary": best[1]},
        }
        write_json(self._workdir / RESULTS, results)
        return results

    def _described(self, step: int) -> str:
        weights = count_parameters(self._model.declared_slow())
        size = f"{self._setup.train.batch_size} × {self._task.sequence_length} tokens"
        where = f"{self._mesh.size} × {self._mesh.devices.flat[0].platform}"
        return (
            f"seed {self._setup.seed}: {weights:,} weights, step {step} to {self._setup.train.steps} of {size}, on {where}; the first step "
            "compiles"
        )

    def _check_begun(self) -> None:
        """Say that a run begins anew, or refuse to if it had been saved: its checkpoints are gone then.

        Raises:
          CheckpointError: names the step that it had come to.
        """
        if not (self._workdir / RUN).exists():
            return
        if (self._workdir / WEIGHTS).exists():
            raise CheckpointError(
                f"{self._workdir} holds exported weights, which no training goes on with there; start from them in another --workdir, with "
                f"--config.train.init_from={shlex.quote(str(self._workdir))}"
            )
        starts = [start.get("step") for start in read_run(self._workdir).starts]
        reached = max((row["step"] for row in read_rows(self._workdir / METRICS, until=self._setup.train.steps)), default=0)
        # What is measured of a step is written after the save before it.
        if any(starts) or reached > self._checkpoint_every_before():
            raise CheckpointError(
                f"{self._workdir} holds a run that had come to step {reached}, and {self._workdir / CHECKPOINTS} holds no checkpoint of it: "
                "restore that folder, or begin anew in another --workdir; nothing was changed"
            )
        _LOGGER.warning(
            "%s holds a run that ended before its first checkpoint, at step %d: it begins anew", self._workdir, reached
        )

    def _checkpoint_every_before(self) -> int:
        """What ``train.checkpoint_every`` was when the run began."""
        train = read_run(self._workdir).config.get("train")
        every = train.get("checkpoint_every") if isinstance(train, dict) else None
        return every if isinstance(every, int) else self._setup.train.checkpoint_every

    def _begin(self) -> tuple[TrainState, RunProgress]:
        """The state before the first step."""
        self._check_begun()
        parts, origin = (self._model, self._optimizer, self._mesh), None
        if self._setup.train.init_from is None:
            state = init_state(*parts, self._init_key, self._hooks, self._carried_rows, self._setup.mesh.fsdp)
        else:
            slow, origin = read_start(self._setup, self._task, self._target.slow)
            check_same_start(origin, [folder for folder in self._others if folder != self._workdir])
            state = state_from(*parts, slow, self._hooks, self._carried_rows, self._setup.mesh.fsdp)
        self._write_run_file([describe_start(0, self._setup.seed)], origin)
        return state, RunProgress(step=0, seconds=0.0, training_seconds=0.0, tokens=0, evaluated=False)

    def _go_on(self) -> tuple[TrainState, RunProgress]:
        """The state of the last checkpoint."""
        for folder, text in trained_texts([self._workdir]).items():
            check_text(folder, text, self._task.fingerprint)
        trees, progress = self._checkpoints.restore(
            saved_trees(self._target), lambda trees: restored_state(trees, self._target).step
        )
        start, starts, origin, shown = describe_start(progress.step, self._setup.seed), [], None, ""
        if (self._workdir / RUN).exists():
            before = read_run(self._workdir)
            found = changes(before.config, self._setup.record)
            different = found.how | found.where
            starts, origin = before.starts, before.init_from
            start["changed"] = {key: {"there": there, "now": now} for key, (there, now) in different.items()}
            shown = "".join(f", {key}={now} instead of {there}" for key, (there, now) in different.items())
        _LOGGER.info("resuming %s at step %d%s", self._workdir, progress.step, shown)
        self._write_run_file([*starts, start], origin)
        return restored_state(trees, self._target), progress

    def _share_of_peak(self) -> float | None:
        """Model flops utilisation; None where nobody counted, or the devices' peak is not known."""
        if self._peak is None or self._flops_per_token is None:
            return None
        return (self._clock.rate() or 0.0) * self._flops_per_token / self._peak

    def _train_and_evaluate(self, state: TrainState, start: RunProgress) -> tuple[Evaluation, int]:
        """Train to the end. Returns the evaluation of the final state, and its step."""
        settings, enough = self._setup.train, self._setup.train.stop_at
        step, evaluated = start.step, start.evaluated
        pending: collections.deque[tuple[int, Any]] = collections.deque()
        data = self._task.batches(step, settings.steps)
        # A run that was interrupted behind its last evaluation ends there when it goes on.
        best = self._checkpoints.best
        reached = enough is not None and best is not None and best[0] == step and best[1] >= enough
        while True:
            final = step == settings.steps or (reached and step == start.step)
            evaluation = score = None
            if final or step > 0 and step % settings.evaluate_every == 0 and not evaluated:
                self._look_at(pending)
                evaluation = self._evaluate(state, step, evaluated)
                # A resumed run may evaluate its final state once more: its checkpoint has the score already.
                score = None if evaluated else evaluation.primary
                evaluated = True
            if score is not None and (final or self._is_best(score)):
                self._save(state, step, evaluated, score)
            elif step > start.step and step % settings.checkpoint_every == 0:
                self._look_at(pending)
                self._save(state, step, evaluated, score, background=self._in_background())
            if evaluation is not None and (final or (enough is not None and evaluation.primary >= enough)):
                return evaluation, step
            self._stop_if_asked(state, step, evaluated, pending)

            batch = self._put(next(data))
            with jax.transfer_guard("disallow"):
                state, metrics = self._train_step(state, batch, self._step_key)
            step, evaluated = step + 1, False
            pending.append((step, metrics))
            if step == start.step + 1:
                # This step compiled: the clock starts at its end and leaves its tokens out.
                jax.block_until_ready(metrics)
                self._clock.start(leave_out=step)
            elif (step - 1) % settings.log_every == 0:
                # The newest step is still running: look at those before it.
                self._look_at(pending, leave=1)

    def _look_at(self, pending: collections.deque[tuple[int, Any]], leave: int = 0) -> None:
        """Fetch the metrics of all steps but the newest ``leave``, stop if one is not finite, and report."""
        ready = [pending.popleft() for _ in range(len(pending) - leave)]
        fetched = jax.device_get([metrics for _, metrics in ready])
        for (step, _), metrics in zip(ready, fetched, strict=True):
            if not all(metrics["finite"].values()):
                raise NonFiniteError(self._describe_divergence(step, metrics), step)
            self._clock.count(step, int(metrics["tokens"]))
            if step % self._setup.train.log_every == 0 or step == self._setup.train.steps:
                row = {
                    "loss": float(metrics["loss"]),
                    self._task.accuracy_name: float(metrics["answer_accuracy"]),
                    "grad_norm": float(metrics["grad_norm"]),
                    "learning_rate": float(metrics["learning_rate"]),
                    "tokens_per_second": self._clock.recent_rate(),
                    **{name: float(value) for name, value in metrics["hooks"].items()},
                }
                row |= {f"model/{name}": float(value) for name, value in metrics["model"].items()}
                if self._peak is not None and row["tokens_per_second"] is not None:
                    row["mfu"] = row["tokens_per_second"] * self._flops_per_token / self._peak
                self._reporter.training(step, row)

    def _describe_divergence(self, step: int, metrics: Any) -> str:
        last = self._checkpoints.last_step
        good = "none was saved yet" if last is None else f"step {last}, in {self._workdir / CHECKPOINTS}"
        what, remedy = self._cause_of_divergence(metrics)
        return f"{what} at step {step}. Last good checkpoint: {good}. Try {remedy}, in another --workdir"

    def _cause_of_divergence(self, metrics: Any) -> tuple[str, str]:
        bad = [name for name, finite in metrics["finite"].items() if not finite]
        if "loss" in bad or "gradient" in bad:  # which makes all that comes after it so
            numbers = f"loss {float(metrics['loss'])} or gradient norm {float(metrics['grad_norm'])}"
            return f"{numbers} is not finite", "a smaller optimizer.learning_rate or clip_norm"
        if bad[0].startswith("fast"):
            return f"{bad[0]}, which is carried on, is not finite", "a smaller model.fast.learning_rate or model.fast.decay"
        # What a hook remembers may only repeat what it did to the weights.
        name, _, leaf = min(bad, key=lambda path: ":history" in path).partition(":")
        (update,) = (update for update in self._hooks.updates if update.name == name)
        return f"{update.label} left {leaf} NaN or infinite", update.remedy

    def _evaluate(self, state: TrainState, step: int, evaluated: bool) -> Evaluation:
        predict = self._predict(state.slow)

        def interruptible(*arrays: Any, **options: Any) -> Any:
            if self.signal_number is not None:
                self._save_and_stop(state, step, evaluated, self.signal_number)
            return predict(*arrays, **options)

        with self._clock.paused():
            evaluation = self._task.evaluate(interruptible)
            measured = None if self._measure is None else self._measured(self._measure, state)
        self._reporter.evaluation(step, evaluation, measured)
        return evaluation

    def _measured(self, measure: Callable[..., Any], state: TrainState) -> dict[str, list[float]]:
        """On the first rows of the first training batch, so that one evaluation can be compared with the next."""
        batch, spread = self._task.batch(0), self._mesh.shape["data"]
        rows = spread * max(1, MEASURED_ROWS // spread)
        batch = self._put(jax.tree.map(lambda array: array[:rows], batch._replace(extra=None)))
        more = {} if batch.write is None else {"write": batch.write}
        measured = measure(state.slow, batch.tokens, batch.valid, batch.reset, **more)
        return jax.tree.map(lambda sizes: sizes.tolist(), jax.device_get(measured))

    def _is_best(self, score: float) -> bool:
        """It waits for what is being saved in the background, and so is asked of evaluations only."""
        best = self._checkpoints.best
        return best is None or score >= best[1]

    def _save(self, state: TrainState, step: int, evaluated: bool, score: float | None, *, background: bool = False) -> None:
        with self._clock.paused():
            self._checkpoints.save(saved_trees(state), self._progress(step, evaluated), score, background=background)

    def _in_background(self) -> bool:
        """Whether a step goes on while the checkpoint before it is written."""
        if self._setup.train.save != "auto":
            return self._setup.train.save == "background"
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self._target)) >= LARGE

    def _stop_if_asked(
        self, state: TrainState, step: int, evaluated: bool, pending: collections.deque[tuple[int, Any]]
    ) -> None:
        number = self.signal_number
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            number = self._signals.number or signal.SIGTERM
        if number is not None:
            self._look_at(pending)
            self._save_and_stop(state, step, evaluated, number)

    def _save_and_stop(self, state: TrainState, step: int, evaluated: bool, number: int) -> None:
        self._save(state, step, evaluated, None)
        raise Interrupted(
            f"{name_of(number)}: saved step {step} of {self._setup.train.steps} in {self._workdir}; the same command goes on there",
            number,
        )

    def _progress(self, step: int, evaluated: bool) -> RunProgress:
        seconds = self._seconds_before + time.perf_counter() - self._started
        return RunProgress(
            step=step,
            seconds=seconds,
            training_seconds=self._clock.seconds,
            tokens=self._clock.tokens,
            evaluated=evaluated,
        )

    def _write_run_file(self, starts: list[dict[str, Any]], origin: dict[str, Any] | None) -> None:
        files = self._task.files
        values = {
            "config": self._setup.record.config,
            "text": self._task.fingerprint,
            "files": list(files),
            "file_digests": {name: text_digest(content) for name, content in files.items()},
            "starts": starts,
            "init_from": origin,
        }
        write_json(self._workdir / RUN, values)
        # What a task needs to be used later and cannot be made again from the configuration alone, such as a tokenizer.
        for name, content in files.items():
            write_text(self._workdir / name, content)


class _Clock:
    """Counts tokens against the time of the training steps: evaluations, saves and compilation are left out."""

    def __init__(self, seconds: float, tokens: int):
        self.tokens = tokens
        self._before = seconds
        self._since: float | None = None
        self._left_out: int | None = None
        self._last = (seconds, tokens)

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else time.perf_counter() - self._since)

    def start(self, leave_out: int) -> None:
        self._since, self._left_out = time.perf_counter(), leave_out

    def count(self, step: int, tokens: int) -> None:
        self.tokens += 0 if step == self._left_out else tokens

    @contextmanager
    def paused(self) -> Iterator[None]:
        running, self._before = self._since is not None, self.seconds
        self._since = None
        try:
            yield
        finally:
            self._since = time.perf_counter() if running else None

    def rate(self) -> float | None:
        """Tokens a second over the whole run, all its starts together."""
        return self.tokens / self.seconds if self.tokens else None

    def recent_rate(self) -> float | None:
        """Tokens a second since the last call."""
        (seconds, tokens), self._last = self._last, (self.seconds, self.tokens)
        return (self.tokens - tokens) / (self._last[0] - seconds) if self.tokens > tokens else None
