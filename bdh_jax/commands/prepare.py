"""Turn a large text into shards of token ids, once: ``bdh prepare --files='books/*.txt' --out=data/books``.

    bdh prepare --dataset=roneneldan/TinyStories --out=data/stories
    bdh prepare --dataset=HuggingFaceFW/fineweb-edu --name=sample-10BT \\
        --documents=200000 --out=data/fineweb
    bdh prepare --files='books/*.txt.gz' --train_tokenizer=4096 --out=data/books
    bdh train text --config.data.path=data/stories --workdir=runs/stories

Data sets are streamed by the ``datasets`` library (``pip install "bdh_jax[text]"``); a local folder in one of its formats works too. A
document's own content decides whether it is for training or validation. Shards and their checksums are listed in ``manifest.json``
(:mod:`bdh_jax.data.shards`). Interrupted, the same command goes on after the last shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from bdh_jax.commands._flags import define_path
from bdh_jax.config import ConfigError
from bdh_jax.console import suggest
from bdh_jax.data import shards as prepared
from bdh_jax.data.documents import TEXT_COLUMN
from bdh_jax.data.preparation import prepare
from bdh_jax.runs.lock import only_writer

_DATASET = define_path("dataset", "Data set of the Hugging Face hub, or a local folder in one of its formats.")
_NAME = flags.DEFINE_string("name", None, "Configuration of the data set, such as sample-10BT.")
_SPLIT = flags.DEFINE_string("split", "train", "Split of the data set to read.")
_FILES = define_path("files", "Files to read instead: paths, folders or globs, with commas between.", several=True)
_COLUMN = flags.DEFINE_string("column", TEXT_COLUMN, "Column that holds the text.")
_OUT = define_path("out", "Folder for the shards.")
_DOCUMENTS = flags.DEFINE_integer("documents", None, "Read so many documents; default all.", lower_bound=1)
_SHARE = flags.DEFINE_float("validation_share", 0.005, "Share of the documents for validation.")
_SHARD_TOKENS = flags.DEFINE_integer("shard_tokens", 100_000_000, "Tokens of a shard.", lower_bound=1)
_TOKENIZER = define_path("tokenizer", "tokenizer.json of a byte-level BPE; default: bytes.")
_TRAIN_TOKENIZER = flags.DEFINE_integer("train_tokenizer", None, "Train a BPE of so many tokens first.", lower_bound=257)
_TOKENIZER_DOCUMENTS = flags.DEFINE_integer("tokenizer_documents", 10_000, "On so many documents.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    """Prepare what the flags name.

    Raises:
      ConfigError: a flag is missing or wrong, or another process writes to the folder.
      DataError: the text cannot be read, or the folder holds other text.
    """
    del argv
    if (_DATASET.value is None) == (_FILES.value is None):
        raise ConfigError("give --dataset=NAME or --files=GLOB, one of the two: what is to be prepared?")
    if not _OUT.value:
        raise ConfigError("--out is missing: name a folder for the shards, such as --out=data/stories")
    if _TOKENIZER.value and _TRAIN_TOKENIZER.value:
        raise ConfigError("--tokenizer and --train_tokenizer exclude each other; give one of them")
    if not 0 < _SHARE.value < 1:
        raise ConfigError(f"--validation_share={_SHARE.value} must lie between 0 and 1")
    source = {
        "dataset": _DATASET.value,
        "name": _NAME.value,
        "split": _SPLIT.value if _DATASET.value else None,
        "files": _FILES.value,
        "column": _COLUMN.value,
        "documents": _DOCUMENTS.value,
        "validation_share": _SHARE.value,
        "train_tokenizer": _TRAIN_TOKENIZER.value,
    }
    with only_writer(Path(_OUT.value)):
        manifest = prepare(
            Path(_OUT.value),
            source,
            shard_tokens=_SHARD_TOKENS.value,
            tokenizer=_TOKENIZER.value,
            tokenizer_documents=_TOKENIZER_DOCUMENTS.value,
        )
    print(_summary(Path(_OUT.value), manifest))
    suggest(f"bdh train text --config.data.path={_OUT.value} --workdir=runs/text")


def _summary(folder: Path, manifest: dict[str, Any]) -> str:
    lines = [f"{folder}:", f"  {manifest['documents_read']:,} documents, tokenizer {manifest['tokenizer']}"]
    for split in prepared.SPLITS:
        shards = [shard for shard in manifest["shards"] if shard.split == split]
        tokens, documents = sum(s.tokens for s in shards), sum(s.documents for s in shards)
        lines.append(f"  {split}: {tokens:,} tokens in {documents:,} documents, {len(shards)} shards")
    return "\n".join(lines)
