"""A corpus: documents end to end as token ids, split by document, and seen through windows of one length.

Axis letters: N tokens of a corpus, D documents, T time.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from bdh_jax.data.content import write_temporary
from bdh_jax.data.errors import DataError, text_package

if TYPE_CHECKING:
    import grain


MEMORY_BYTES = 2**28
"""A corpus that is larger, as it is made, lies in a temporary file, from which it is mapped."""


class TokenArray(Protocol):
    """What is asked of an array of token ids, in memory or not: stretches of it."""

    @property
    def dtype(self) -> Any:
        """Of the ids."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, where: slice, /) -> np.ndarray: ...

    def __array__(self) -> np.ndarray: ...


class Corpus(NamedTuple):
    """Documents end to end."""

    tokens: TokenArray
    """[N], unsigned integers; may be mapped from a file."""
    starts: np.ndarray
    """[D] int64, the first token of each document, ascending; the first is 0."""
    fingerprint: str = ""
    """A hash of the files it was mapped from; empty if there are none."""

    @property
    def documents(self) -> int:
        """D."""
        return len(self.starts)

    def document(self, index: int) -> np.ndarray:
        """The tokens of a document."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.tokens)
        return self.tokens[self.starts[index] : end]


def build_corpus(documents: Iterable[Any], encode: Callable[[Any], np.ndarray]) -> Corpus:
    """Put documents end to end.

    Args:
      documents: of whatever kind ``encode`` takes.
      encode: a document → token ids [N], as of :class:`bdh_jax.data.tokenizer.Tokenizer`.

    Returns:
      The corpus; documents without a token are left out. Empty if there are none.
    """
    return join_pieces((encode(document), True) for document in documents)


def join_pieces(pieces: Iterable[tuple[np.ndarray, bool]]) -> Corpus:
    """Put documents end to end, which may come in pieces.

    Args:
      pieces: token ids [N], all of one dtype, and whether a document starts there; pieces without a token are left out.

    Returns:
      As :func:`build_corpus`.

    Raises:
      DataError: if there is no room on the disk for what does not fit into ``MEMORY_BYTES``.
    """
    file: Any = io.BytesIO()
    starts, count, dtype = [], 0, np.dtype(np.uint8)
    try:
        for piece, first in pieces:
            if not len(piece):
                continue
            dtype = piece.dtype
            if first:
                starts.append(count)
            count += len(piece)
            _write(file, np.ascontiguousarray(piece))
            if isinstance(file, io.BytesIO) and file.tell() > MEMORY_BYTES:
                memory, file = file, tempfile.TemporaryFile()  # noqa: SIM115, closed below
                _write(file, memory.getbuffer())
        if isinstance(file, io.BytesIO):
            tokens = np.frombuffer(file.getbuffer(), dtype)
        else:
            tokens = np.memmap(file, dtype, mode="r", shape=(count,))
    finally:
        if not isinstance(file, io.BytesIO):
            file.close()
    return Corpus(tokens, np.array(starts, np.int64))


def _write(file: Any, content: Any) -> None:
    if isinstance(file, io.BytesIO):
        file.write(content)
    else:
        write_temporary(file, content, "the text")


def split_corpus(corpus: Corpus, share: float) -> tuple[Corpus, Corpus]:
    """Training and validation documents.

    A document's own content decides on which side it is, so that equal documents are never on both, and adding files moves none.
    With fewer than 100 documents that would leave too much to chance: then the last ``share`` of all tokens is the validation
    part, and the document at that place is cut.

    Args:
      corpus: to be split.
      share: of the documents (or tokens) that are for validation, in (0, 1).

    Returns:
      (training, validation).

    Raises:
      DataError: if ``share`` is not in (0, 1), or a part would be empty.
    """
    if not 0 < share < 1:
        raise DataError(f"the share of the validation data is {share}; it must lie between 0 and 1")
    if corpus.documents < 100:
        cut = len(corpus.tokens) - round(share * len(corpus.tokens))
        before = corpus.starts[corpus.starts < cut]
        after = np.concatenate([[0], corpus.starts[corpus.starts > cut] - cut]).astype(np.int64)
        parts = Corpus(corpus.tokens[:cut], before), Corpus(corpus.tokens[cut:], after)
    else:
        documents = [corpus.document(index) for index in range(corpus.documents)]
        chosen = [draw(document) < share for document in documents]

        def of_side(side: bool) -> Corpus:
            return build_corpus([d for d, c in zip(documents, chosen, strict=True) if c == side], lambda document: document)

        parts = of_side(False), of_side(True)
    if not all(len(part.tokens) for part in parts):
        raise DataError(
            f"{len(corpus.tokens)} tokens in {corpus.documents} documents cannot be split: with a share of {share} a part is empty. "
            "Give more text"
        )
    return parts


def draw(document: np.ndarray) -> float:
    """A number in [0, 1) that the content of a document decides."""
    digest = hashlib.blake2b(np.ascontiguousarray(document).data, digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Window(NamedTuple):
    """T tokens and the one after each."""

    tokens: np.ndarray
    """[T] int32."""
    targets: np.ndarray
    """[T] int32."""
    reset: np.ndarray
    """[T] bool, True where a document starts."""
    weight: np.ndarray
    """[T] float32, 0 where the target belongs to the next document, which nothing before it foretells; else 1."""


def window(corpus: Corpus, first: int, length: int) -> Window:
    """The window of ``length`` targets that starts at token ``first``."""
    piece = np.asarray(corpus.tokens[first : first + length + 1], np.int32)
    low, high = np.searchsorted(corpus.starts, [first, first + length + 1])
    starts = np.zeros(length + 1, bool)
    starts[corpus.starts[low:high] - first] = True
    return Window(piece[:-1], piece[1:], starts[:-1], (~starts[1:]).astype(np.float32))


def training_windows(corpus: Corpus, length: int, seed: int) -> grain.MapDataset[Window]:
    """Endless windows in random order, by number: what element ``i`` is depends on nothing but the corpus, T, the seed and ``i``.

    An epoch cuts the corpus into windows end to end, from an offset of its own, and shuffles them.

    Args:
      corpus: the training part.
      length: T.
      seed: of offsets and order.

    Returns:
      A Grain dataset of :class:`Window`.

    Raises:
      DataError: if the corpus is shorter than a window.
    """
    count = _windows(corpus, length)
    spare = len(corpus.tokens) - 1 - count * length

    def cut(index: int, number: int) -> Window:
        offset = np.random.default_rng((seed, index // count)).integers(spare + 1)
        return window(corpus, int(offset) + number * length, length)

    order = grain_library().MapDataset.range(count).seed(seed).shuffle().repeat()
    return order.map_with_index(cut)


def consecutive_windows(corpus: Corpus, length: int, rows: int, seed: int) -> grain.MapDataset[Window]:
    """Endless windows for B rows, each of which goes on reading where it stopped: element ``step * rows + row``.

    The corpus is cut into as many stretches as there are rows. A row reads its stretch to the end and starts again. The first
    window of a stretch starts a new episode, as a document does. Fewer than B windows at the start of the corpus are over, and never read.

    Args:
      corpus: the training part.
      length: T.
      rows: B.
      seed: moves the stretches, around the end of the corpus, so that seeds differ.

    Returns:
      A Grain dataset of :class:`Window`.

    Raises:
      DataError: if there is less than a window for each row.
    """
    count = _windows(corpus, length) // rows
    if count < 1:
        raise DataError(
            f"{len(corpus.tokens)} tokens are fewer than a window for each of {rows} rows needs: {rows * length + 1}. "
            "Give more text, or a smaller batch"
        )
    spare = _windows(corpus, length) - rows * count
    offset = int(np.random.default_rng(seed).integers(rows * count))

    def cut(index: int) -> Window:
        step, row = divmod(index, rows)
        here = step % count
        first = ((row * count + here + offset) % (rows * count) + spare) * length
        piece = window(corpus, first, length)
        if here == 0 or first == spare * length:
            piece.reset[0] = True
        return piece

    return grain_library().MapDataset.range(2**62).map(cut)


def grain_library() -> Any:
    """Grain, which serves windows.

    Raises:
      DataError: if it is not installed.
    """
    return text_package("training on text", "grain")


def _windows(corpus: Corpus, length: int) -> int:
    count = (len(corpus.tokens) - 1) // length
    if count < 1:
        raise DataError(
            f"{len(corpus.tokens)} tokens are fewer than a window needs: {length + 1}. Give more text, or a shorter length"
        )
    return count
