"""Settings of the C library's allocator: the command line lets a process keep freed memory for its next step.

A training step allocates and frees the same hundreds of megabytes as the step before. By default glibc hands them back
to the kernel each time, and the kernel fills every page with zeros when it is touched again: a fifth of a step's time.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class MallocSettings:
    """glibc's thresholds for handing freed memory back to the kernel.

    Attributes:
        threshold: bytes from which a block gets its own pages, which go back to the kernel when it is freed.
        trim: free bytes at the heap's end from which they go back to the kernel.
        raises_thresholds: whether freeing a large block raises both.
    """

    threshold: int
    trim: int
    raises_thresholds: bool


DEFAULT_MALLOC = MallocSettings(threshold=128 << 10, trim=128 << 10, raises_thresholds=True)
KEEP_FREED_MALLOC = MallocSettings(threshold=1 << 30, trim=(1 << 31) - 1, raises_thresholds=False)

_malloc_settings = DEFAULT_MALLOC


def keep_freed_memory() -> None:
    """Make this process keep the memory it frees: its size stays at its peak.

    Without glibc nothing changes.
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
    """The allocator settings of this process."""
    return _malloc_settings
