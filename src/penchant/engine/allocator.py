"""What becomes of memory that is freed: the C library keeps it for the next step, where the command line asks for it.

A training step allocates and frees the same hundreds of megabytes as the step before. By default glibc hands them back
to the kernel each time, and the kernel fills every page with zeros when it is touched again: a fifth of a step's time.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Habits:
    """How glibc treats blocks of memory.

    Attributes:
        threshold: bytes from which a block gets pages of its own, which go back when it is freed.
        trim: free bytes at the heap's end from which they go back.
        moves: whether freeing a large block raises both.
    """

    threshold: int
    trim: int
    moves: bool


BY_DEFAULT = Habits(threshold=128 << 10, trim=128 << 10, moves=True)
KEEPING = Habits(threshold=1 << 30, trim=(1 << 31) - 1, moves=False)

_habits = BY_DEFAULT


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for good: its size stays at the highest it had.

    Nothing happens where the C library is not glibc.
    """
    global _habits
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, KEEPING.threshold)
    mallopt(_M_TRIM_THRESHOLD, KEEPING.trim)
    _habits = KEEPING


def habits() -> Habits:
    """Those of this process."""
    return _habits
