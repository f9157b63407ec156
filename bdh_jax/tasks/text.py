"""Text as a task: predict the next token, scored in bits per byte of the validation text.

Axis letters: B batch, T time, V vocabulary, W windows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import scipy.special

from bdh_jax.config import ConfigError
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
"""Logits of one call of the model during evaluation take at most so much."""


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
        if self.length < 1:
            raise ConfigError(f"task.length={self.length} must be at least 1")
        if self.order not in ("shuffled", "consecutive"):
            raise ConfigError(f"task.order={self.order!r} is not one of 'shuffled', 'consecutive'")
        if self.evaluation_windows is not None and self.evaluation_windows < 1:
            raise ConfigError(f"task.evaluation_windows={self.evaluation_windows} must be at least 1, or None for all")

    def make(self, *, seed: int, batch_size: int, data: DataConfig | None = None) -> Text:
        """See :meth:`bdh_jax.tasks.base.TaskConfig.make`."""
        return Text(self, load_text(data or DataConfig()), seed=seed, batch_size=batch_size)

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

    def batch(self, step: int) -> Batch:
        """The training batch of a step, each array [batch_size, length]: a pure function of (seed, step)."""
        windows = self._batches[step]
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
        score = score_windows(
            predict,
            self.validation,
            self.data.tokenizer.token_bytes,
            self.config.length,
            self.config.evaluation_windows,
            rows=self.batch_size,
        )
        return Evaluation(rows=(score,), primary=2.0**-score.bits_per_byte)


def score_windows(
    predict: Predict, corpus: Corpus, token_bytes: np.ndarray, length: int, windows: int | None = None, *, rows: int = 32
) -> TextScore:
    """Score a text in windows end to end.

    Args:
      predict: see :meth:`Text.evaluate`. It is called with one shape, B a multiple of 8.
      corpus: the text, at least two tokens.
      token_bytes: [V], bytes of each token.
      length: tokens of a window; the last one may be shorter, and is then padded.
      windows: take so many, spread evenly; None takes all.
      rows: windows of one call, about; fewer if their logits would be too large.

    Returns:
      The score, in float64. The first token of a document is not predicted: nothing before it foretells it.
    """
    total = -(-(len(corpus.tokens) - 1) // length)
    numbers = np.arange(total) if windows is None or windows >= total else np.arange(windows) * total // windows
    vocab_size = len(token_bytes)
    most = min(LOGITS_BYTES // (4 * vocab_size * length), -(-rows // 8) * 8, -(-len(numbers) // 8) * 8)
    rows = max(most // 8 * 8, 8)
    nats = right = predicted = size = 0.0
    for first in range(0, len(numbers), rows):
        pieces = [_padded(window(corpus, int(n) * length, length), length) for n in numbers[first : first + rows]]
        tokens, targets, reset, weight, valid = (np.stack(arrays) for arrays in zip(*pieces, strict=True))
        index = np.minimum(np.arange(rows), len(pieces) - 1)
        logits = np.asarray(predict(tokens[index], valid[index], reset[index]))[: len(pieces)].astype(np.float64)
        picked = np.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        losses = scipy.special.logsumexp(logits, axis=-1) - picked
        weight = weight * valid
        nats += float((losses * weight).sum())
        right += float(((logits.argmax(axis=-1) == targets) * weight).sum())
        predicted += float(weight.sum())
        size += float((token_bytes[targets] * weight).sum())
    return TextScore(
        name="validation",
        count=int(size),
        bits_per_byte=nats / np.log(2) / size,
        loss=nats / predicted,
        accuracy=right / predicted,
    )


def _one_document(corpus: Corpus) -> Corpus:
    return corpus._replace(starts=corpus.starts[:1])


def _padded(piece: Window, length: int) -> tuple[np.ndarray, ...]:
    valid = np.ones(len(piece.tokens), bool)
    return tuple(np.pad(array, (0, length - len(array))) for array in (*piece, valid))


CONFIG = TextConfig
