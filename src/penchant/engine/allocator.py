"""What becomes of memory that is freed: the C library keeps it for the next step, where the command line asks for it.

A training step allocates and frees the same hundreds of megabytes as the step before. By default glibc hands them back
to the kernel each time, and the kernel fills every page with zeros when it is touched again: a fifth of a step's time.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class MallocSettings:
    """How glibc treats blocks of memory.

    Attributes:
        threshold: bytes from which a block gets pages of its own, which go back when it is freed.
        trim: free bytes at the heap's end from which they go back.
        raises_thresholds: whether freeing a large block raises both.
    """

    threshold: int
    trim: int
    raises_thresholds: bool


DEFAULT_MALLOC = MallocSettings(threshold=128 << 10, trim=128 << 10, raises_thresholds=True)
KEEP_FREED_MALLOC = MallocSettings(threshold=1 << 30, trim=(1 << 31) - 1, raises_thresholds=False)

_malloc_settings = DEFAULT_MALLOC


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for good: its size stays at the highest it had.

    Nothing happens where the C library is not glibc.
    """
    global _malloc_settings
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, KEEP_FREED_MALLOC.threshold)
    mallopt(_M_TRIM_THRESHOLD, KEEP_FREED_MALLOC.trim)
    _malloc_settings = KEEP_FREED_MALLOC


def malloc_settings() -> MallocSettings:
    """Those of this process."""
    return _malloc_settings
