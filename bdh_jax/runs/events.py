"""TensorBoard event files, written at once: a disk that is full is an error here and now, and nothing waits for a thread."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import (
    Event,  # pyright: ignore[reportAttributeAccessIssue] - made when Protocol Buffers' file is imported
    SessionLog,  # pyright: ignore[reportAttributeAccessIssue] - likewise
)
from tensorboardX.summary import scalar


class EventFile:
    """A new event file.

    Args:
      folder: where; made if it is not there.
      start: what older files of the folder say of steps from here on is not shown.

    Raises:
      OSError: if it cannot be written; so do all methods.
    """

    def __init__(self, folder: Path, *, start: int):
        folder.mkdir(parents=True, exist_ok=True)
        # The writer's own name is one of the second, and a file of that name would be emptied.
        self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{start}")
        self._writer.write_event(Event(wall_time=time.time(), step=start, session_log=SessionLog(status=SessionLog.START)))

    def scalar(self, name: str, value: float, step: int) -> None:
        """One number of a step."""
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))

    def flush(self) -> None:
        """Return when everything is in the file."""
        self._writer.flush()

    def close(self) -> None:
        """As :meth:`flush`; nothing can be written afterwards."""
        self._writer.close()
