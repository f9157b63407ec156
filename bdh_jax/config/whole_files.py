"""Files that are written whole or not at all. Needs nothing but the standard library, so that whatever measures a bare machine can use it."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file to write, which takes the place of ``path`` once the block is done, and is gone if it is not.

    Its name cannot be foretold, and what lies there is never written through: not a link either.

    Args:
      path: the file; its folder is made if it is not there.

    Yields:
      The new file, which is empty.

    Raises:
      OSError: if it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Short, whatever the file is called: a name has 255 bytes at most.
    part = path.parent / f".{secrets.token_hex(8)}.part"
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield part
        # What is renamed before it is on disk can be empty after a power cut.
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, content: str) -> None:
    """Write a text with :func:`whole_file`, as UTF-8.

    Raises:
      OSError: if it cannot be written.
    """
    with whole_file(path) as part:
        part.write_text(content, encoding="utf-8")
