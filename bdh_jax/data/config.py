"""Settings of the text that a task reads."""

from __future__ import annotations

import dataclasses

from bdh_jax.config.base import check_types, require
from bdh_jax.config.identity import WHERE
from bdh_jax.config.paths import check_local


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The text of a task that reads one (``bdh_jax.data``)."""

    path: str | None = dataclasses.field(default=None, metadata=WHERE)
    """Files to train on: one or several paths, folders or globs, with commas between; or a folder that ``bdh_jax.data.preparation``
    made, which has its own split, column and tokenizer. None takes tiny Shakespeare, downloaded once."""
    validation_path: str | None = dataclasses.field(default=None, metadata=WHERE)
    """Files to validate on; None keeps back ``validation_share`` of the others."""
    validation_share: float = 0.1
    """Of the documents, by their content; of the tokens if there are fewer than 100 documents."""
    column: str = dataclasses.field(default="text", metadata=WHERE)
    """Of JSON lines and Parquet files."""
    tokenizer: str | None = dataclasses.field(default=None, metadata=WHERE)
    """A byte-level BPE, as the file ``tokenizer.json`` of the tokenizers library; None: bytes are the tokens."""

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("path", "validation_path", "column", "tokenizer"):
            require(
                getattr(self, name) != "",
                f"data.{name}='' is empty (is a variable unset?); give it a value, or leave data.{name} out",
            )
        for name in ("path", "validation_path", "tokenizer"):
            if getattr(self, name) is not None:
                check_local(getattr(self, name), f"data.{name}")
        require(0 < self.validation_share < 1, f"data.validation_share={self.validation_share} must lie in (0, 1)")
