"""The text that a configuration names, as a training and a validation corpus."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bdh_jax.config.paths import read_path
from bdh_jax.data import shards as prepared
from bdh_jax.data.config import DataConfig
from bdh_jax.data.corpus import Corpus, join_pieces, split_corpus
from bdh_jax.data.documents import Tally, beginning_of, expanded, find_files, read_documents, read_pieces
from bdh_jax.data.errors import DataError, text_package
from bdh_jax.data.tokenizer import Tokenizer, load_tokenizer

TINY_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
TINY_SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

_LOGGER = logging.getLogger("bdh_jax")


class TextData(NamedTuple):
    """Text to train on and to validate with."""

    train: Corpus
    validation: Corpus
    tokenizer: Tokenizer
    fingerprint: str
    """A hash of both corpora and the tokenizer: tells runs on other text apart."""


def load_text(config: DataConfig) -> TextData:
    """Read the files that a configuration names, and split them. What was read is logged.

    Args:
      config: see :class:`DataConfig`.

    Returns:
      The :class:`TextData`.

    Raises:
      DataError: if a file is missing, damaged or empty, or there is nothing to split.
    """
    if config.path is not None and prepared.is_prepared(expanded(config.path)):
        train, validation, tokenizer = _load_prepared(expanded(config.path), config)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        files = [tiny_shakespeare()] if config.path is None else find_files(config.path)
        corpus = _read(files, config.column, tokenizer)
        if config.validation_path is None:
            train, validation = split_corpus(corpus, config.validation_share)
        else:
            held_out = find_files(config.validation_path)
            if both := {file.resolve() for file in files} & {file.resolve() for file in held_out}:
                raise DataError(
                    f"{sorted(both)[0]} is named by data.path={config.path} and by data.validation_path={config.validation_path}: the model "
                    "would train on what validates it. Name other files, or leave data.validation_path out and have documents split"
                )
            train, validation = corpus, _read(held_out, config.column, tokenizer)
    return TextData(train, validation, tokenizer, _fingerprint(train, validation, tokenizer))


def tiny_shakespeare() -> Path:
    """The file, downloaded into the cache folder on first use. ``BDH_JAX_CACHE`` names another folder than ~/.cache/bdh_jax.

    Raises:
      DataError: if it cannot be downloaded.
    """
    pooch = text_package("downloading tiny Shakespeare (without it, name your own text: --config.data.path=FILE)", "pooch")
    folder = Path(read_path(os.environ.get("BDH_JAX_CACHE") or str(pooch.os_cache("bdh_jax")), "BDH_JAX_CACHE"))
    pooch.get_logger().setLevel("WARNING")
    try:
        return Path(
            pooch.retrieve(TINY_SHAKESPEARE, f"sha256:{TINY_SHAKESPEARE_SHA256}", fname="tinyshakespeare.txt", path=folder)
        )
    except (OSError, ValueError) as error:  # no network, nowhere to write; or another file than the checksum's
        raise DataError(
            f"tiny Shakespeare, the text that is trained on without data.path, cannot be downloaded "
            f"({type(error).__name__}). Name your own text: --config.data.path=FILE; or put the file at {folder / 'tinyshakespeare.txt'}"
        ) from error


def _load_prepared(folder: Path, config: DataConfig) -> tuple[Corpus, Corpus, Tokenizer]:
    for name in ("validation_path", "tokenizer"):
        if getattr(config, name) is not None:
            raise DataError(
                f"{folder} was prepared with its own {name.removesuffix('_path')}; leave data.{name} out, or prepare it anew"
            )
    train, validation, tokenizer = prepared.load(folder)
    documents, tokens = (train.documents + validation.documents, len(train.tokens) + len(validation.tokens))
    beginning = beginning_of(tokenizer.decode(train.tokens[:240]))
    _LOGGER.info(
        "prepared text of %s: %s documents, %s tokens; it begins %s", folder, f"{documents:,}", f"{tokens:,}", beginning
    )
    return train, validation, tokenizer


def _read(files: Iterable[Path], column: str, tokenizer: Tokenizer) -> Corpus:
    files = list(files)
    for path in files:
        if prepared.is_prepared(path.parent):
            raise DataError(
                f"{path} is part of prepared text, which is no text to read: name its folder alone, --config.data.path={path.parent}, without "
                "other files and not as data.validation_path"
            )
    tally = Tally()
    if tokenizer.content is None:  # bytes, which may be cut anywhere
        pieces = (piece for path in files for piece in read_pieces(path, column, tally))
        corpus = join_pieces((tokenizer.encode(piece.content), piece.first) for piece in pieces)
    else:
        documents = (document for path in files for document in read_documents(path, column, tally))
        corpus = join_pieces((tokenizer.encode(document), True) for document in documents)
    if not len(corpus.tokens):
        names = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
        raise DataError(f"{names}: empty, there is no text to read")
    _LOGGER.info("text of %s: %s", files[0] if len(files) == 1 else os.path.commonpath(map(os.path.abspath, files)), tally)
    return corpus


def _fingerprint(train: Corpus, validation: Corpus, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(tokenizer.name.encode())
    for corpus in (train, validation):
        digest.update(corpus.fingerprint.encode() if corpus.fingerprint else _hash_of(corpus))
    return digest.hexdigest()[:16]


def _hash_of(corpus: Corpus) -> bytes:
    digest = hashlib.sha256(np.ascontiguousarray(corpus.starts).data)
    digest.update(np.ascontiguousarray(corpus.tokens).data)
    return digest.digest()
