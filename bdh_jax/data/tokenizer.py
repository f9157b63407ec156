"""From bytes to token ids and back: bytes themselves, or a byte-level BPE of the tokenizers library."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.data.documents import expanded
from bdh_jax.data.errors import DataError, first_line, text_package

BYTE_VOCABULARY = 256
LARGEST_VOCABULARY = 2**22
"""A tokenizer.json with larger ids is taken for damaged: every id has a row in the model."""


class Tokenizer(NamedTuple):
    """How text becomes token ids."""

    name: str
    """"bytes", or the hash of a BPE's merges and vocabulary."""
    encode: Callable[[bytes], np.ndarray]
    """Bytes → [N] unsigned ids."""
    decode: Callable[[Iterable[int]], bytes]
    """Ids → the bytes they stand for; those of several tokens are those of each, end to end."""
    token_bytes: np.ndarray
    """[V] int64, bytes that each token stands for."""
    content: str | None = None
    """The ``tokenizer.json`` it was made of; None for bytes."""

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.token_bytes)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, so any file can be read."""
    return Tokenizer(
        name="bytes",
        encode=lambda document: np.frombuffer(document, np.uint8),
        decode=lambda ids: bytes(int(token) for token in ids),
        token_bytes=np.ones(BYTE_VOCABULARY, np.int64),
    )


def load_tokenizer(path: str | Path | None) -> Tokenizer:
    """The tokenizer that a configuration names.

    Args:
      path: ``tokenizer.json`` of the tokenizers library, of a BPE over bytes; None for bytes.

    Raises:
      DataError: if the file is missing or no tokenizer, the tokens are not made of bytes, so that text could be lost in silence and bits
        per byte could not be counted, or one text has several encodings.
    """
    if path is None:
        return byte_tokenizer()
    path = expanded(str(path))
    tokenizers = tokenizers_library()
    if not os.path.isfile(path):
        raise DataError(f"tokenizer {path} does not exist; name a tokenizer.json, or leave it out for bytes")
    try:
        content = path.read_text(encoding="utf-8")
        kind = json.loads(content)
        _check_model(kind, path)
        inner = tokenizers.Tokenizer.from_str(content)
        inner.no_truncation()
        inner.no_padding()
    except (KeyboardInterrupt, SystemExit, DataError):
        raise
    except BaseException as error:  # the library raises plain Exception, and what its Rust code panics with is not even that
        raise DataError(f"{path} is no tokenizer.json of the tokenizers library ({first_line(error)})") from error
    decoders, normalizers = (_parts(kind.get(name), f"{name}s") for name in ("decoder", "normalizer"))
    if decoders != ["ByteLevel"] or normalizers:
        raise DataError(
            f"{path}: its decoder is {' and '.join(decoders) or None} and its normalizer {' and '.join(normalizers) or None}; only byte-level "
            "tokenizers without a normalizer keep every byte, such as those `bdh prepare --train_tokenizer` makes"
        )
    try:
        pieces = _pieces(inner, path)
    except KeyError as error:
        raise DataError(
            f"{path}: a token holds {error}, which no byte is written as; it is no byte-level tokenizer"
        ) from error
    lengths = np.array([len(piece) for piece in pieces], np.int64)
    offsets, whole = np.cumsum(lengths) - lengths, np.frombuffer(b"".join(pieces), np.uint8)
    dtype = np.uint16 if len(pieces) <= 2**16 else np.uint32

    def encode(document: bytes) -> np.ndarray:
        try:
            text = document.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"a document is no UTF-8 (byte {document[error.start]:#04x} at {error.start}), and the tokenizer reads text only; "
                "leave data.tokenizer out: bytes are never refused"
            ) from error
        ids = np.array(inner.encode(text, add_special_tokens=False).ids, dtype)
        size = lengths[ids]
        if size.sum() != len(document):
            raise DataError(
                f"{path} makes {size.sum()} bytes of {len(document)}: it drops or adds some (a pre-tokenizer other than byte-level, or "
                "add_prefix_space); such a tokenizer cannot be used"
            )
        back = whole[np.repeat(offsets[ids] - (np.cumsum(size) - size), size) + np.arange(len(document))]
        if back.tobytes() != document:
            raise DataError(
                f"{path} makes other bytes of a document than it holds (an unknown token, or two of one id); it cannot be used"
            )
        return ids

    encode(b"a  b\n c1 \xc3\xa9")  # says so now, and not after hours
    return Tokenizer(
        name=_fingerprint(kind),
        encode=encode,
        decode=lambda ids: b"".join(pieces[int(token)] for token in ids),
        token_bytes=lengths,
        content=content,
    )


def train_tokenizer(documents: Iterable[bytes], vocab_size: int) -> str:
    """Train a byte-level BPE.

    Args:
      documents: UTF-8 texts.
      vocab_size: V, at least 256.

    Returns:
      The content of a ``tokenizer.json``.

    Raises:
      DataError: for a document that is no UTF-8.
    """
    tokenizers = tokenizers_library()
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    try:
        inner.train_from_iterator((document.decode() for document in documents), trainer)
    except UnicodeDecodeError as error:
        raise DataError(
            f"a document is no UTF-8 ({error}), and a tokenizer is trained on text; use bytes instead"
        ) from error
    return inner.to_str(pretty=True)


def tokenizers_library() -> Any:
    """The library, with all that is used of it.

    Raises:
      DataError: if it is not installed.
    """
    parts = ("decoders", "models", "pre_tokenizers", "trainers")
    return text_package("a BPE", "tokenizers", *(f"tokenizers.{part}" for part in parts))


def _check_model(kind: Any, path: Path) -> None:
    """Refuse what the library would take for a model, and is none that is deterministic and over bytes."""
    model = kind.get("model") if isinstance(kind, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        name = model.get("type") if isinstance(model, dict) else type(kind).__name__
        raise DataError(f"{path} is no tokenizer.json of a BPE, which alone keeps every byte: its model is {name!r:.40}")
    if dropout := model.get("dropout"):
        raise DataError(
            f"{path}: its model has a dropout of {dropout!r:.40}, with which one text has another encoding each time; set it to null in the file"
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        # The library cuts a prefix off as so many bytes, also in the midst of a character, and the process aborts.
        if model.get(name):
            raise DataError(
                f"{path}: its model has {name}={model[name]!r:.40}, which no byte-level BPE has; set it to null in the file"
            )


def _parts(component: Any, name: str) -> list[str]:
    """The types of a decoder or normalizer, in their order, whatever sequences they lie in."""
    if not isinstance(component, dict):
        return []
    if component.get("type") != "Sequence":
        return [str(component.get("type"))]
    return [kind for part in component.get(name) or () for kind in _parts(part, name)]


def _pieces(inner: Any, path: Path) -> list[bytes]:
    """The bytes of each token. A byte-level vocabulary writes every byte as one character of a fixed alphabet. Ids that no token has
    stand for no byte."""
    byte_of = _byte_of_character()
    vocabulary = inner.get_vocab(with_added_tokens=True)
    size = 1 + max(vocabulary.values(), default=-1)
    if not 0 < size <= LARGEST_VOCABULARY:
        raise DataError(
            f"{path}: {len(vocabulary)} tokens with ids below {size}, where a vocabulary has 1 to {LARGEST_VOCABULARY}; it may be damaged"
        )
    if len(set(vocabulary.values())) < len(vocabulary):
        raise DataError(f"{path}: two tokens have one id, so that no text can be told from its ids; it may be damaged")
    pieces = [b""] * size
    added = {token_id: added.content for token_id, added in inner.get_added_tokens_decoder().items()}
    for token, token_id in vocabulary.items():
        if token_id in added:
            pieces[token_id] = added[token_id].encode()
        else:
            pieces[token_id] = bytes(byte_of[character] for character in token)
    return pieces


def _byte_of_character() -> dict[str, int]:
    # GPT-2's alphabet: bytes that print stand for themselves, the others for characters from 256 on, in their order.
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _fingerprint(kind: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]
