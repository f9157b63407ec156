"""Prepared text: token ids in memory-mapped shards, with a manifest of checksums.

A folder holds::

    manifest.json            what was read, how, and every finished shard with its SHA-256
    tokenizer.json           of a BPE; absent for bytes
    train-00000.npy          token ids of whole documents, end to end
    train-00000.starts.npy   int64, where each document starts
    validation-00000.npy …

A shard is listed once it is complete, so an interrupted preparation goes on after the last one listed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pydantic

from bdh_jax.config.records import RecordError, Schema, digest_of, parse
from bdh_jax.config.whole_files import whole_file, write_whole
from bdh_jax.data.corpus import Corpus
from bdh_jax.data.documents import DataError
from bdh_jax.data.tokenizer import Tokenizer, load_tokenizer

MANIFEST, TOKENIZER = "manifest.json", "tokenizer.json"
FORMAT = "bdh_jax.text.1"
SPLITS = ("train", "validation")


class Shard(NamedTuple):
    """One entry of the manifest."""

    split: str
    number: int
    tokens: int
    documents: int
    sha256: str
    """Of the token file's bytes, then the starts file's."""

    @property
    def files(self) -> tuple[str, str]:
        """Names of the token file and the starts file."""
        stem = f"{self.split}-{self.number:05d}"
        return f"{stem}.npy", f"{stem}.starts.npy"


class _Shard(Schema):
    """:class:`Shard` in the file."""

    split: Literal["train", "validation"]
    number: pydantic.NonNegativeInt
    tokens: pydantic.PositiveInt
    documents: pydantic.PositiveInt
    sha256: str = pydantic.Field(pattern="^[0-9a-f]{64}$")


class _Kind(Schema):
    """What every version of it has."""

    format: str


class _Manifest(Schema):
    """The file. Those of older versions have neither ``files`` nor a digest."""

    format: Literal["bdh_jax.text.1"]
    source: dict[str, Any]
    files: list[list[str | int]] | None = None
    tokenizer: str
    documents_read: pydantic.NonNegativeInt
    complete: bool
    shards: list[_Shard]
    digest: str | None = None


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by ``bdh_jax.data.preparation``.

    Raises:
      DataError: if it holds shards and no manifest: their bytes are no text.
    """
    if os.path.isfile(folder / MANIFEST):  # False also of a list of names that is too long to be one
        return True
    shards = [name for split in SPLITS for name in Shard(split, 0, 0, 0, "").files if os.path.exists(folder / name)]
    if shards:
        raise DataError(
            f"{folder} holds {shards[0]} of a prepared text, and its {MANIFEST} is gone; restore it, or prepare the text anew"
        )
    return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with its shards as :class:`Shard`.

    Raises:
      DataError: if it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
        kind = parse(content, _Kind).format
        if kind != FORMAT:
            raise DataError(f"{path} has the format {kind!r}, not {FORMAT!r}; prepare the text anew in another folder")
        read = parse(content, _Manifest)
    except (OSError, RecordError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it may be damaged. Prepare the text anew in another folder"
        ) from error
    shards = [Shard(*(getattr(shard, name) for name in Shard._fields)) for shard in read.shards]
    for split in SPLITS:
        numbers = [shard.number for shard in shards if shard.split == split]
        if numbers != list(range(len(numbers))):
            raise DataError(
                f"{path} lists the shards {numbers} of {split}; it is damaged. Prepare the text anew in another folder"
            )
    return {**read.model_dump(exclude={"digest"}), "shards": shards}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, whole or not at all.

    Raises:
      OSError: if it cannot be written.
    """
    content = {**manifest, "shards": [shard._asdict() for shard in manifest["shards"]]}
    write_whole(folder / MANIFEST, json.dumps({**content, "digest": digest_of(content)}, indent=2) + "\n")


def write_shard(folder: Path, split: str, number: int, corpus: Corpus) -> Shard:
    """Write a shard's two files. It exists once the manifest lists it.

    Raises:
      OSError: if they cannot be written.
    """
    shard = Shard(split, number, len(corpus.tokens), corpus.documents, "")
    for name, array in zip(shard.files, (corpus.tokens, corpus.starts), strict=True):
        with whole_file(folder / name) as part, part.open("wb") as file:
            np.save(file, array)
    return shard._replace(sha256=_sha256(folder, shard))


def load(folder: Path) -> tuple[Corpus, Corpus, Tokenizer]:
    """Training and validation corpus, mapped from their files, and the tokenizer.

    Every shard is read once and compared with its checksum.

    Raises:
      DataError: if the preparation was not finished, or a file is missing or damaged.
    """
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise DataError(f"{folder}: the preparation was interrupted; give the same command again, and it goes on")
    tokenizer = load_tokenizer(folder / TOKENIZER if manifest["tokenizer"] != "bytes" else None)
    if tokenizer.name != manifest["tokenizer"]:
        raise DataError(
            f"{folder / TOKENIZER} is not the tokenizer that the text was prepared with; restore it, or prepare anew"
        )
    corpora = []
    for split in SPLITS:
        shards = [shard for shard in manifest["shards"] if shard.split == split]
        if not shards:
            raise DataError(f"{folder} has no {split} text; prepare more documents")
        corpora.append(_join(folder, shards, tokenizer.vocab_size))
    return (*corpora, tokenizer)


def _join(folder: Path, shards: Sequence[Shard], vocab_size: int) -> Corpus:
    tokens, starts, first = [], [], 0
    for shard in shards:
        if _sha256(folder, shard) != shard.sha256:
            raise DataError(
                f"{folder / shard.files[0]} or its starts file is damaged: the checksum is not the manifest's. Restore the files, or "
                "prepare the text anew in another folder"
            )
        of_tokens, of_starts = shard.files
        ids, begins = _array(folder / of_tokens, "r"), _array(folder / of_starts, None)
        wrong = _wrong(shard, ids, begins, vocab_size)
        if wrong:
            raise DataError(
                f"{folder / shard.files[0]} or its starts file is damaged: {wrong}. Prepare the text anew in another folder"
            )
        tokens.append(ids)
        starts.append(begins + first)
        first += shard.tokens
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return Corpus(tokens[0] if len(tokens) == 1 else Joined(tokens), np.concatenate(starts), digest)


def _array(path: Path, mmap_mode: Literal["r"] | None) -> np.ndarray:
    try:
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is no array ({error}); restore it, or prepare the text anew in another folder") from error


def _wrong(shard: Shard, ids: np.ndarray, starts: np.ndarray, vocab_size: int) -> str:
    """What is wrong with a shard's arrays; empty if nothing is. A checksum says that they are what was written, not that it was right."""
    if ids.ndim != 1 or ids.dtype.kind != "u":
        return f"token ids must be unsigned integers [N], and are {ids.dtype} {list(ids.shape)}"
    if starts.ndim != 1 or starts.dtype != np.int64:
        return f"starts must be int64 [D], and are {starts.dtype} {list(starts.shape)}"
    if (len(ids), len(starts)) != (shard.tokens, shard.documents):
        return (
            f"it has {len(ids)} tokens in {len(starts)} documents, and the manifest says {shard.tokens} in {shard.documents}"
        )
    if starts[0] != 0 or np.any(np.diff(starts) <= 0) or starts[-1] >= len(ids):
        return "starts of documents must ascend from 0"
    # In stretches: the file may be larger than the memory.
    largest = max(int(ids[first : first + (1 << 24)].max()) for first in range(0, len(ids), 1 << 24))
    return f"the token id {largest} is not below the vocabulary's size {vocab_size}" if largest >= vocab_size else ""


class Joined:
    """Arrays end to end, of which stretches are read; nothing is copied before."""

    def __init__(self, arrays: Sequence[np.ndarray]):
        """``arrays``: one or more, each [N], of one dtype."""
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, where: slice) -> np.ndarray:
        start, stop, step = where.indices(len(self))
        if step != 1:
            raise ValueError(f"a stretch has no step; it is {step}")
        parts = []
        for array, end in zip(self._arrays, self._ends.tolist(), strict=True):
            begin = end - len(array)
            if start < end and stop > begin:
                parts.append(array[max(start - begin, 0) : stop - begin])
        return np.concatenate(parts) if parts else np.zeros(0, self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[0 : len(self)], dtype)


def _sha256(folder: Path, shard: Shard) -> str:
    digest = hashlib.sha256()
    for name in shard.files:
        try:
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read ({error.strerror}); restore it, or prepare the text anew"
            ) from error
    return digest.hexdigest()
