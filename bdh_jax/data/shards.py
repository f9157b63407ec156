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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

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


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by ``bdh_jax.data.preparation``."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, with its shards as :class:`Shard`.

    Raises:
      DataError: if it is damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        kind = manifest["format"]
        manifest["shards"] = [Shard(**shard) for shard in manifest["shards"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it may be damaged. Prepare the text anew in another folder"
        ) from error
    if kind != FORMAT:
        raise DataError(f"{path} has the format {kind!r}, not {FORMAT!r}; prepare the text anew in another folder")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, whole or not at all."""
    content = {**manifest, "shards": [shard._asdict() for shard in manifest["shards"]]}
    part = folder / (MANIFEST + ".part")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(folder / MANIFEST)


def write_shard(folder: Path, split: str, number: int, corpus: Corpus) -> Shard:
    """Write a shard's two files. It exists once the manifest lists it."""
    shard = Shard(split, number, len(corpus.tokens), corpus.documents, "")
    for name, array in zip(shard.files, (corpus.tokens, corpus.starts), strict=True):
        with (folder / name).open("wb") as file:
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
        corpora.append(_join(folder, shards))
    return (*corpora, tokenizer)


def _join(folder: Path, shards: Sequence[Shard]) -> Corpus:
    tokens, starts, first = [], [], 0
    for shard in shards:
        if _sha256(folder, shard) != shard.sha256:
            raise DataError(
                f"{folder / shard.files[0]} or its starts file is damaged: the checksum is not the manifest's. Restore the files, or "
                "prepare the text anew in another folder"
            )
        tokens.append(np.load(folder / shard.files[0], mmap_mode="r"))
        starts.append(np.load(folder / shard.files[1]) + first)
        first += shard.tokens
    digest = hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()
    return Corpus(tokens[0] if len(tokens) == 1 else Joined(tokens), np.concatenate(starts), digest)


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
