"""Turn a large text into shards of token ids (:mod:`bdh_jax.data.shards`), once.

Data sets are streamed by the ``datasets`` library. A document's own content decides whether it is for training or validation.
Interrupted, the same call goes on after the last shard.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bdh_jax.config.paths import check_writable
from bdh_jax.config.whole_files import write_whole
from bdh_jax.console import Progress
from bdh_jax.data import shards as prepared
from bdh_jax.data.corpus import build_corpus, draw
from bdh_jax.data.documents import DataError, Tally, find_files, read_documents, text_package
from bdh_jax.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

_LOGGER = logging.getLogger("bdh_jax")


def prepare(
    folder: Path,
    source: dict[str, Any],
    *,
    shard_tokens: int,
    tokenizer: str | None = None,
    tokenizer_documents: int = 10_000,
) -> dict[str, Any]:
    """Prepare a text, or go on where an earlier call stopped.

    Args:
      folder: for the shards.
      source: what is read, as the flags of the command: dataset, name, split, files, column, documents, validation_share and
        train_tokenizer. Kept in the manifest.
      shard_tokens: a shard is written once so many tokens are at hand.
      tokenizer: ``tokenizer.json``, or None for bytes.
      tokenizer_documents: documents on which a tokenizer is trained, if ``source`` asks for one.

    Returns:
      The manifest.

    Raises:
      DataError: if the text cannot be read, the folder holds other text or cannot be written to, or there is nothing for one of the two
        sides.
      ConfigError: if no file can be made in the folder, before anything is read.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    if prepared.is_prepared(folder):
        manifest = prepared.read_manifest(folder)
        _check_source(folder, manifest, source)
        chosen = load_tokenizer(folder / prepared.TOKENIZER if manifest["tokenizer"] != "bytes" else None)
        if chosen.name != manifest["tokenizer"] or tokenizer is not None and load_tokenizer(tokenizer).name != chosen.name:
            raise DataError(f"{folder} was begun with another tokenizer; name another --out")
        if not manifest["complete"]:
            check_writable(folder / prepared.MANIFEST)
            files = _files(source, folder)
            _check_files(folder, manifest, files)
    else:
        # The lock of a command, and what was being written when a process was killed, are hidden files.
        if any(not path.name.startswith(".") for path in folder.iterdir()):
            raise DataError(f"{folder} is not empty and holds no prepared text; name another folder with --out")
        check_writable(folder / prepared.MANIFEST)
        files = _files(source, folder)
        chosen = _make_tokenizer(folder, source, files, tokenizer, tokenizer_documents)
        manifest = {
            "format": prepared.FORMAT,
            "source": source,
            "files": _describe(files),
            "tokenizer": chosen.name,
            "documents_read": 0,
            "complete": False,
            "shards": [],
        }
        try:
            with _writing(folder):
                prepared.write_manifest(folder, manifest)
        except BaseException:
            # Without a manifest the tokenizer would be a file of somebody else's.
            (folder / prepared.TOKENIZER).unlink(missing_ok=True)
            raise
    if not manifest["complete"]:
        _write_shards(folder, manifest, files, chosen, shard_tokens)
    return manifest


def _write_shards(
    folder: Path,
    manifest: dict[str, Any],
    files: list[Path],
    tokenizer: Tokenizer,
    shard_tokens: int,
) -> None:
    source, done = manifest["source"], manifest["documents_read"]
    parts: dict[str, list[np.ndarray]] = {split: [] for split in prepared.SPLITS}
    waiting = 0

    def flush() -> None:
        nonlocal waiting
        for split, arrays in parts.items():
            if arrays:
                number = sum(shard.split == split for shard in manifest["shards"])
                corpus = build_corpus(arrays, lambda array: array)
                with _writing(folder):
                    manifest["shards"].append(prepared.write_shard(folder, split, number, corpus))
                arrays.clear()
        waiting = 0
        manifest["documents_read"] = done
        with _writing(folder):
            prepared.write_manifest(folder, manifest)

    tokens = sum(shard.tokens for shard in manifest["shards"])
    with Progress("documents", source["documents"], done=done) as progress:
        for document in _documents(source, files, skip=done):
            ids = tokenizer.encode(document)
            done += 1
            if len(ids):
                parts["validation" if draw(ids) < source["validation_share"] else "train"].append(ids)
                waiting, tokens = waiting + len(ids), tokens + len(ids)
            if waiting >= shard_tokens:
                flush()
            progress.to(done, f"{tokens:,} tokens" if progress.is_bar else "")
    flush()
    for split in prepared.SPLITS:
        if not any(shard.split == split for shard in manifest["shards"]):
            raise DataError(
                f"{done} documents with --validation_share={source['validation_share']} left none for {split}; read more documents, or "
                "change the share, into another --out"
            )
    manifest["complete"] = True
    with _writing(folder):
        prepared.write_manifest(folder, manifest)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written to: {error.strerror}. What is prepared is kept: make room, and the same command goes on"
        ) from error


def _files(source: dict[str, Any], folder: Path) -> list[Path]:
    """The files that ``source`` names, none for a data set. What is prepared may lie among them, and is no text to read."""
    if source["files"] is None:
        return []
    files = [file for file in find_files(source["files"]) if folder.resolve() not in file.resolve().parents]
    if not files:
        raise DataError(f"--files={source['files']} names nothing but what lies in --out={folder}; name the text itself")
    return files


def _describe(files: list[Path]) -> list[list[Any]]:
    return [[str(file), file.stat().st_size] for file in files]


def _check_files(folder: Path, manifest: dict[str, Any], files: list[Path]) -> None:
    """Refuse to go on among other files: documents are counted, and would come twice or never."""
    before, now = manifest.get("files"), _describe(files)
    if before is not None and before != now:
        changed = next(pair for pair in itertools.zip_longest(before, now) if pair[0] != pair[1])
        raise DataError(
            f"{folder} was begun with other files: there {changed[0]}, now {changed[1]} (name and bytes). Restore them, or name another --out"
        )


def _documents(source: dict[str, Any], files: list[Path], skip: int) -> Iterator[bytes]:
    """The documents that ``source`` names, without the first ``skip``."""
    if source["files"] is not None:
        return itertools.islice(_of_files(files, source["column"]), skip, source["documents"])
    return itertools.islice(_rows(source, skip), None if source["documents"] is None else max(source["documents"] - skip, 0))


def _of_files(files: list[Path], column: str) -> Iterator[bytes]:
    """The documents of files. What they are is logged with the first one, and what was read after the last."""
    tally = Tally()
    for path in files:
        for document in read_documents(path, column, tally):
            if tally.documents == 1:
                _LOGGER.info("reading %d files; in the first: %s", len(files), tally)
            yield document
    _LOGGER.info("read %s", tally)


def _rows(source: dict[str, Any], skip: int) -> Iterator[bytes]:
    datasets = text_package("reading data sets", "datasets")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(source["dataset"], source["name"], split=source["split"], streaming=True).skip(skip)
        for number, row in enumerate(rows, skip):
            text = row.get(source["column"])
            if text is None and source["column"] in row:
                text = ""  # a null row is left out, as of files, and counted, so that an interrupted preparation goes on after it
            if not isinstance(text, str):
                raise DataError(
                    f"{source['dataset']}, row {number}: no text in column {source['column']!r} (there is {', '.join(row)}); name the column "
                    "that holds it with --column"
                )
            yield text.encode(errors="surrogatepass")
    except DataError:
        raise
    except Exception as error:  # of several libraries, by the kind of failure
        reason = str(error).strip().split("\n")[0][:300]
        raise DataError(
            f"{source['dataset']} cannot be read ({type(error).__name__}: {reason}). What is prepared is kept; the same command goes on"
        ) from error


def _make_tokenizer(folder: Path, source: dict[str, Any], files: list[Path], path: str | None, documents: int) -> Tokenizer:
    if source["train_tokenizer"] is not None:
        content = train_tokenizer(itertools.islice(_documents(source, files, 0), documents), source["train_tokenizer"])
    else:
        content = load_tokenizer(path).content
    if content is None:  # bytes, of which nothing is kept
        return load_tokenizer(None)
    with _writing(folder):
        write_whole(folder / prepared.TOKENIZER, content)
    return load_tokenizer(folder / prepared.TOKENIZER)


def _check_source(folder: Path, manifest: dict[str, Any], source: dict[str, Any]) -> None:
    different = [
        f"{key}: there {manifest['source'].get(key)!r}, now {source[key]!r}"
        for key in source
        if manifest["source"].get(key) != source[key]
    ]
    if different:
        raise DataError(f"{folder} holds other text ({'; '.join(different)}); name another --out, or give the same flags")
