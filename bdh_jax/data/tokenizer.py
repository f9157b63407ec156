"""From bytes to token ids and back: bytes themselves, or a byte-level BPE of the tokenizers library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bdh_jax.data.documents import DataError, text_package

BYTE_VOCABULARY = 256


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
      DataError: if the file is missing or no tokenizer, or the tokens are not made of bytes: then text could be lost in silence,
        and bits per byte could not be counted.
    """
    if path is None:
        return byte_tokenizer()
    path = Path(path)
    tokenizers = tokenizers_library()
    if not path.is_file():
        raise DataError(f"tokenizer {path} does not exist; name a tokenizer.json, or leave it out for bytes")
    try:
        content = path.read_text(encoding="utf-8")
        inner = tokenizers.Tokenizer.from_str(content)
        inner.no_truncation()
        inner.no_padding()
        kind = json.loads(content)
    except Exception as error:  # the library raises plain Exception
        raise DataError(f"{path} is no tokenizer.json of the tokenizers library ({error})") from error
    decoder = (kind.get("decoder") or {}).get("type")
    if decoder != "ByteLevel" or kind.get("normalizer") is not None:
        raise DataError(
            f"{path}: its decoder is {decoder} and its normalizer {(kind.get('normalizer') or {}).get('type')}; only byte-level "
            "tokenizers without a normalizer keep every byte, such as those `python -m bdh_jax prepare --train_tokenizer` makes"
        )
    try:
        pieces = _pieces(inner)
    except KeyError as error:
        raise DataError(
            f"{path}: a token holds {error}, which no byte is written as; it is no byte-level tokenizer"
        ) from error
    lengths = np.array([len(piece) for piece in pieces], np.int64)
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
        if lengths[ids].sum() != len(document):
            raise DataError(
                f"{path} makes {lengths[ids].sum()} bytes of {len(document)}: it drops or adds some (a pre-tokenizer other than byte-level, or "
                "add_prefix_space); such a tokenizer cannot be used"
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


def _pieces(inner: Any) -> list[bytes]:
    """The bytes of each token. A byte-level vocabulary writes every byte as one character of a fixed alphabet."""
    byte_of = _byte_of_character()
    pieces = []
    added = {token_id: added.content for token_id, added in inner.get_added_tokens_decoder().items()}
    for token_id in range(inner.get_vocab_size()):
        token = inner.id_to_token(token_id)
        if token is None or token_id in added:
            pieces.append(b"" if token is None else added[token_id].encode())
        else:
            pieces.append(bytes(byte_of[character] for character in token))
    return pieces


def _byte_of_character() -> dict[str, int]:
    # GPT-2's alphabet: bytes that print stand for themselves, the others for characters from 256 on, in their order.
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + number): byte for number, byte in enumerate(others)}


def _fingerprint(kind: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:16]
