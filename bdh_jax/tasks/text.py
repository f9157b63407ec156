"""Text as a task: predict the next token, scored in bits per byte of the validation text.

Axis letters: B batch, T time, V vocabulary, W windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import jax
import numpy as np
import scipy.special

from bdh_jax.config import ConfigError, check_types
from bdh_jax.data.config import DataConfig
from bdh_jax.data.corpus import Corpus, Window, consecutive_windows, grain_library, training_windows, window
from bdh_jax.data.documents import DataError
from bdh_jax.data.load import TextData, load_text
from bdh_jax.data.shards import TOKENIZER
from bdh_jax.data.tokenizer import Tokenizer
from bdh_jax.tasks.base import Batch, TaskBase, TaskConfig
from bdh_jax.tasks.scores import Evaluation, TextScore
from bdh_jax.tasks.scoring import Predict

Order = Literal["shuffled", "consecutive"]

LOGITS_BYTES = 2**26
"""Logits that are held at one time during evaluation take at most so much (of one token of eight rows, if that is more)."""


@dataclasses.dataclass(frozen=True)
class TextConfig(TaskConfig):
    """Windows of a text. Which text is said by ``config.data``."""

    name: str = "text"
    length: int = 128
    """Tokens of a window."""
    order: Order = "shuffled"
    """"consecutive": each row of a batch goes on where it stopped in the batch before, as ``train.carry_state`` needs."""
    document_resets: bool = True
    """A document starts with an empty state, and its first token is not predicted; False takes the text as one stream."""
    evaluation_windows: int | None = None
    """Validate on so many windows, spread evenly; None takes the whole validation text."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.length < 1:
            raise ConfigError(f"task.length={self.length} must be at least 1")
        if self.order not in ("shuffled", "consecutive"):
            raise ConfigError(f"task.order={self.order!r} is not one of 'shuffled', 'consecutive'")
        if self.evaluation_windows is not None and self.evaluation_windows < 1:
            raise ConfigError(f"task.evaluation_windows={self.evaluation_windows} must be at least 1, or None for all")

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Text:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Text(self, load_text(data or DataConfig()), seed=seed, batch_size=batch_size)

    def shapes(self, rows: int) -> Batch:
        """Windows have no padding; resets of documents that end within one are left out."""
        integers, numbers = (jax.ShapeDtypeStruct((rows, self.length), dtype) for dtype in (np.int32, np.float32))
        return Batch(integers, integers, numbers, numbers, None, None)  # pyright: ignore[reportArgumentType] - shapes of arrays

    def token_meaning(self, tokenizer: Tokenizer | None = None) -> str:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.token_meaning`; without a tokenizer it is bytes."""
        return "bytes" if tokenizer is None or tokenizer.content is None else f"tokens of {tokenizer.name}"

    @property
    def reads_text(self) -> bool:
        """Its tokens are those of a text."""
        return True

    @property
    def rows_continue(self) -> bool:
        """Rows go on in the order "consecutive"."""
        return self.order == "consecutive"


class Text(TaskBase):
    """Language modelling as a task."""

    def __init__(self, config: TextConfig, data: TextData, *, seed: int, batch_size: int):
        """See :meth:`TextConfig.make`."""
        self.config, self.data = config, data
        self.seed, self.batch_size = seed, batch_size
        self.tokenizer = data.tokenizer
        self.vocab_size = data.tokenizer.vocab_size
        self.sequence_length = config.length
        self.fingerprint = data.fingerprint
        self.files = {} if data.tokenizer.content is None else {TOKENIZER: data.tokenizer.content}
        # Whether an episode may start inside a window, or go on from the one before.
        self.may_reset = config.order == "consecutive" or config.document_resets and data.train.documents > 1
        train = data.train if config.document_resets else _one_document(data.train)
        self.validation = data.validation if config.document_resets else _one_document(data.validation)
        if config.order == "shuffled":
            windows = training_windows(train, config.length, seed)
        else:
            windows = consecutive_windows(train, config.length, batch_size, seed)
        self._batches = windows.batch(batch_size)
        if len(self.validation.tokens) < 2:
            raise DataError(
                f"the validation text has {len(self.validation.tokens)} tokens, and predicting needs at least 2; give more text, or a "
                "larger data.validation_share"
            )
        total = -(-(len(self.validation.tokens) - 1) // config.length)
        for name, corpus, windows in (
            ("training", train, None),
            ("validation", self.validation, _numbers(total, config.evaluation_windows)),
        ):
            if not _predicted(corpus, config.length, windows):
                of = (
                    ""
                    if windows is None or len(windows) == total
                    else f" that task.evaluation_windows={len(windows)} chooses"
                )
                raise DataError(
                    f"the {name} text{of} ({len(corpus.tokens):,} tokens in {corpus.documents:,} documents) has no token to predict, since the "
                    "first one of a document is not. Give longer documents, or task.document_resets=False, which reads all as one"
                )

    def batch(self, step: int) -> Batch:
        """The training batch of a step, each array [batch_size, length]: a pure function of (seed, step)."""
        windows = self._batches[step]
        if windows is None:
            raise DataError(f"the text has no windows for step {step}; give more text")
        if self.config.order == "shuffled":
            # Every window starts from an empty state anyway.
            windows.reset[:, 0] = False
        weights = windows.weight
        return Batch(windows.tokens, windows.targets, weights, weights, np.ones(weights.shape, bool), windows.reset)

    def batches(self, start: int, end: int) -> Iterator[Batch]:
        """The batches of steps ``start`` … ``end`` − 1, made ahead in background threads."""
        grain = grain_library()
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)
        return iter(grain.MapDataset.range(start, end).map(self.batch).to_iter_dataset(options))

    def evaluate(self, predict: Predict) -> Evaluation:
        """Bits per byte of the validation text, read in windows end to end, each from an empty state.

        So the first tokens of a window are predicted from little; :mod:`bdh_jax.analysis.language` reads on with its state instead.

        Args:
          predict: tokens [B,T] int32, valid [B,T] bool, reset [B,T] bool → logits [B,T,V].

        Returns:
          One row. ``primary`` is 2^(−bits per byte), the geometric mean of the probability given to a byte.
        """
        score = self.score(predict)
        return Evaluation(rows=(score,), primary=2.0**-score.bits_per_byte)

    def score(self, predict: Predict) -> TextScore:
        """The row of :meth:`evaluate`."""
        return score_windows(
            predict,
            self.validation,
            self.data.tokenizer.token_bytes,
            self.config.length,
            self.config.evaluation_windows,
            rows=self.batch_size,
        )


def score_windows(
    predict: Predict, corpus: Corpus, token_bytes: np.ndarray, length: int, windows: int | None = None, *, rows: int = 32
) -> TextScore:
    """Score a text in windows end to end.

    Args:
      predict: see :meth:`Text.evaluate`. It is called with one shape, B a multiple of 8. Where logits of eight rows would be too large, it
        gets a fourth argument, the number of tokens whose logits it shall give at a time: see :func:`bdh_jax.training.step.make_predict`.
      corpus: the text, at least two tokens.
      token_bytes: [V], bytes of each token.
      length: tokens of a window; the last one may be shorter, and is then padded.
      windows: take so many, spread evenly; None takes all.
      rows: windows of one call, about; fewer if their logits would be too large.

    Returns:
      The score, in float64. The first token of a document is not predicted: nothing before it foretells it.
    """
    total = -(-(len(corpus.tokens) - 1) // length)
    numbers = _numbers(total, windows)
    token = 4 * len(token_bytes)  # bytes of its logits
    most = min(LOGITS_BYTES // (token * length), -(-rows // 8) * 8, -(-len(numbers) // 8) * 8)
    rows = max(most // 8 * 8, 8)
    part = () if rows * length * token <= LOGITS_BYTES else (max(1, LOGITS_BYTES // (token * rows)),)
    nats = right = predicted = size = 0.0
    for first in range(0, len(numbers), rows):
        pieces = [_padded(window(corpus, int(n) * length, length), length) for n in numbers[first : first + rows]]
        tokens, targets, reset, weight, valid = (np.stack(arrays) for arrays in zip(*pieces, strict=True))
        index = np.minimum(np.arange(rows), len(pieces) - 1)
        logits = predict(tokens[index], valid[index], reset[index], *part)
        losses, best = _losses(logits if part else [logits], targets)
        weight = weight * valid
        nats += float((losses * weight).sum())
        right += float(((best == targets) * weight).sum())
        predicted += float(weight.sum())
        size += float((token_bytes[targets] * weight).sum())
    return TextScore(
        name="validation",
        count=int(size),
        bits_per_byte=nats / np.log(2) / size,
        loss=nats / predicted,
        accuracy=right / predicted,
    )


def _losses(parts: Iterable[np.ndarray], targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cross-entropies [B,T] in float64 and the likeliest tokens [B,T].

    Args:
      parts: logits [≥ B,t,V] of t tokens after another, T altogether.
      targets: [B,T].
    """
    losses, best = np.empty(targets.shape), np.empty(targets.shape, np.int64)
    first = 0
    for part in parts:
        logits = np.asarray(part)[: len(targets)]
        time = logits.shape[1]
        here = slice(first, first + time)
        logits, aims = logits.reshape(-1, logits.shape[-1]), targets[:, here].reshape(-1, 1)
        costs, likeliest = np.empty(len(logits)), np.empty(len(logits), np.int64)
        # Float64 doubles them, and the sum needs as much again.
        size = max(1, LOGITS_BYTES // (32 * logits.shape[-1]))
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            piece = logits[rows].astype(np.float64)
            picked = np.take_along_axis(piece, aims[rows], axis=-1)[:, 0]
            costs[rows] = scipy.special.logsumexp(piece, axis=-1) - picked
            likeliest[rows] = piece.argmax(axis=-1)
        losses[:, here], best[:, here] = costs.reshape(-1, time), likeliest.reshape(-1, time)
        first += time
    return losses, best


def _numbers(total: int, windows: int | None) -> np.ndarray:
    """Numbers of the windows that are evaluated, spread evenly."""
    return np.arange(total) if windows is None or windows >= total else np.arange(windows) * total // windows


def _predicted(corpus: Corpus, length: int, windows: np.ndarray | None) -> int:
    """How many tokens of some windows are predicted: all but the first of each document. None: of all."""
    last = len(corpus.tokens) - 1
    if windows is None:
        return last + 1 - corpus.documents
    ends = np.minimum((windows + 1) * length, last)
    before = np.searchsorted(corpus.starts, [windows * length, ends], side="right")
    return int((ends - windows * length - (before[1] - before[0])).sum())


def _one_document(corpus: Corpus) -> Corpus:
    return corpus._replace(starts=corpus.starts[:1])


def _padded(piece: Window, length: int) -> tuple[np.ndarray, ...]:
    valid = np.ones(len(piece.tokens), bool)
    return tuple(np.pad(array, (0, length - len(array))) for array in (*piece, valid))


CONFIG = TextConfig
