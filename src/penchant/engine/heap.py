"""A model of glibc's allocator: on the CPU a process holds more memory than its tensors take.

Three of its rules matter for tensors of some megabytes. Requests above a threshold get pages of their own, which go
back when they are freed; but freeing such a block raises the threshold to its size, up to 32 MiB, and from then on
blocks like it come from the heap. A hole in the heap stays resident until it is used again; only the top is given back.
And (until 2.38) an aligned request looks for a hole larger than the block it makes, and frees the rest of it, which
small objects mostly take: a block's own hole then does not fit its successor, nor merge with the hole beside it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from platform import libc_ver

from penchant.engine.allocator import DEFAULT_MALLOC, MallocSettings

PAGE = 4096
LARGEST_THRESHOLD = 32 << 20
ALIGNMENT, LEAST, HEADER, TOP_PAD = 64, 32, 8, 128 << 10

STAYS_FREE = 4
"""One in so many remainders behind blocks is taken by no small object: fitted to the peaks of measured runs."""


def has_holes() -> bool:
    """Whether this process's allocator is the one modelled here."""
    name, version = libc_ver()
    return name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < (2, 38)


@dataclass(eq=False)
class Block:
    """A piece of the heap, or (without neighbours) pages of its own."""

    start: int
    size: int
    free: bool = False
    mapped: bool = False
    previous: Block | None = None
    next: Block | None = None


class Heap:
    """A model of glibc's `posix_memalign` and `free` in one arena.

    Args:
        settings: its thresholds at the start.

    Attributes:
        resident: bytes held now.
    """

    def __init__(self, settings: MallocSettings = DEFAULT_MALLOC) -> None:
        self.threshold, self.raises_thresholds, self.trim = (
            settings.threshold,
            settings.raises_thresholds,
            settings.trim,
        )
        self.resident = 0
        self._rests = 0
        self._top = self._end = 0
        self._last: Block | None = None
        self._holes: list[tuple[int, int]] = []
        self._block_at: dict[int, Block] = {}

    def take(self, size: int) -> Block:
        """Allocate a tensor's data, aligned to 64 bytes."""
        need = max(LEAST, (size + HEADER + 15) // 16 * 16)
        request = need + ALIGNMENT + LEAST
        block = self._from_hole(request) or self._from_top(request)
        if block.mapped:
            return block
        lead = -(block.start + 16) % ALIGNMENT
        if lead:
            lead = lead if lead >= LEAST else lead + ALIGNMENT
            remainder = self._split(block, lead)
            self.give(block)
            block = remainder
        if block.size > need + LEAST:
            remainder = self._split(block, need)
            self._rests += 1
            if remainder.next is None or self._rests % STAYS_FREE == 0:
                self.give(remainder)
            # Else small objects take it, and it is never free again.
        return block

    def give(self, block: Block) -> None:
        """Free a block."""
        if block.mapped:
            self.resident -= block.size
            if self.raises_thresholds and self.threshold < block.size <= LARGEST_THRESHOLD:
                self.threshold, self.trim = block.size, 2 * block.size
            return
        for other in (block.previous, block.next):
            if other is not None and other.free:
                self._unlist(other)
                lower, upper = (other, block) if other.start < block.start else (block, other)
                lower.size += upper.size
                lower.next = upper.next
                if upper.next is not None:
                    upper.next.previous = lower
                else:
                    self._last = lower
                block = lower
        block.free = True
        if block.next is None:
            self._last, self._top = block.previous, block.start
            if self._last is not None:
                self._last.next = None
            if self._end - self._top >= self.trim:
                new_end = (self._top + LEAST + TOP_PAD + PAGE - 1) // PAGE * PAGE
                self.resident -= max(0, self._end - new_end)
                self._end = min(self._end, new_end)
        else:
            self._block_at[block.start] = block
            insort(self._holes, (block.size, block.start))

    def _from_hole(self, request: int) -> Block | None:
        index = bisect_left(self._holes, (request, -1))
        if index == len(self._holes):
            return None
        block = self._block_at[self._holes[index][1]]
        self._unlist(block)
        block.free = False
        if block.size >= request + LEAST:
            self.give(self._split(block, request))
        return block

    def _from_top(self, request: int) -> Block:
        if self._end - self._top < request + LEAST:
            if request >= self.threshold:
                size = (request + HEADER + PAGE - 1) // PAGE * PAGE
                self.resident += size
                return Block(0, size, mapped=True)
            end = (self._top + request + TOP_PAD + LEAST + PAGE - 1) // PAGE * PAGE
            self.resident += end - self._end
            self._end = end
        block = Block(self._top, request, previous=self._last)
        if self._last is not None:
            self._last.next = block
        self._last = block
        self._top += request
        return block

    def _split(self, block: Block, size: int) -> Block:
        remainder = Block(block.start + size, block.size - size, previous=block, next=block.next)
        if block.next is not None:
            block.next.previous = remainder
        else:
            self._last = remainder
        block.size, block.next = size, remainder
        return remainder

    def _unlist(self, block: Block) -> None:
        index = bisect_left(self._holes, (block.size, block.start))
        del self._holes[index], self._block_at[block.start]
