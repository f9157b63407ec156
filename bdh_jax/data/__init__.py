"""Text as training data."""

from bdh_jax.data.documents import DataError, find_files, read_documents

__all__ = ["DataError", "find_files", "read_documents"]
