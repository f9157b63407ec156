"""The C library's allocator, which costs a training step on the CPU up to a third of its time where buffers are large."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next step. Every command of the package does this first.

    glibc gives buffers of more than 32 MiB, and much free memory at the end of its heap, back to the system and asks for them again
    at the next step; the system then clears their pages once more. With this the process stays at its peak size instead. Results
    do not change. ``benchmarks/allocator.py`` says what it saves.

    Returns:
      Whether the C library took it: True with glibc, False with others, which have no such call.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)) and bool(mallopt(_M_MMAP_THRESHOLD, 2**30))
