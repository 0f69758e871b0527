"""What glibc's allocator makes of a sequence of allocations: on the CPU a process holds more than its tensors.

Three habits of it matter for tensors of some megabytes. Requests above a threshold get pages of their own, which go
back when they are freed; but freeing such a block raises the threshold to its size, up to 32 MiB, and from then on
blocks like it come from the heap. A hole in the heap stays resident until it is used again; only the top is given back.
And (until 2.38) an aligned request looks for a hole larger than the block it makes, and frees the rest of it, which
small objects mostly take: a block's own hole then does not fit its successor, nor merge with the hole beside it.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from platform import libc_ver

from penchant.engine.allocator import BY_DEFAULT, Habits

PAGE = 4096
LARGEST_THRESHOLD = 32 << 20
ALIGNMENT, LEAST, HEADER, TOP_PAD = 64, 32, 8, 128 << 10

STAYS_FREE = 4
"""Of the rests behind blocks one in so many finds no small object: the count whose peaks fit measured runs best."""


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
    before: Block | None = None
    after: Block | None = None


class Heap:
    """A model of glibc's `posix_memalign` and `free` in one arena.

    Args:
        habits: its thresholds at the start.

    Attributes:
        resident: bytes held now.
    """

    def __init__(self, habits: Habits = BY_DEFAULT) -> None:
        self.threshold, self.moves, self.trim = habits.threshold, habits.moves, habits.trim
        self.resident = 0
        self._rests = 0
        self._top = self._end = 0
        self._last: Block | None = None
        self._holes: list[tuple[int, int]] = []
        self._at: dict[int, Block] = {}

    def take(self, size: int) -> Block:
        """Allocate a tensor's data, aligned to 64 bytes."""
        need = max(LEAST, (size + HEADER + 15) // 16 * 16)
        asked = need + ALIGNMENT + LEAST
        block = self._from_hole(asked) or self._from_top(asked)
        if block.mapped:
            return block
        lead = -(block.start + 16) % ALIGNMENT
        if lead:
            lead = lead if lead >= LEAST else lead + ALIGNMENT
            rest = self._split(block, lead)
            self.give(block)
            block = rest
        if block.size > need + LEAST:
            rest = self._split(block, need)
            self._rests += 1
            if rest.after is None or self._rests % STAYS_FREE == 0:
                self.give(rest)
            # Else small objects take it, and it is never free again.
        return block

    def give(self, block: Block) -> None:
        """Free."""
        if block.mapped:
            self.resident -= block.size
            if self.moves and self.threshold < block.size <= LARGEST_THRESHOLD:
                self.threshold, self.trim = block.size, 2 * block.size
            return
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._unlist(other)
                first, second = (other, block) if other.start < block.start else (block, other)
                first.size += second.size
                first.after = second.after
                if second.after is not None:
                    second.after.before = first
                else:
                    self._last = first
                block = first
        block.free = True
        if block.after is None:
            self._last, self._top = block.before, block.start
            if self._last is not None:
                self._last.after = None
            if self._end - self._top >= self.trim:
                kept = (self._top + LEAST + TOP_PAD + PAGE - 1) // PAGE * PAGE
                self.resident -= max(0, self._end - kept)
                self._end = min(self._end, kept)
        else:
            self._at[block.start] = block
            insort(self._holes, (block.size, block.start))

    def _from_hole(self, asked: int) -> Block | None:
        place = bisect_left(self._holes, (asked, -1))
        if place == len(self._holes):
            return None
        block = self._at[self._holes[place][1]]
        self._unlist(block)
        block.free = False
        if block.size >= asked + LEAST:
            self.give(self._split(block, asked))
        return block

    def _from_top(self, asked: int) -> Block:
        if self._end - self._top < asked + LEAST:
            if asked >= self.threshold:
                size = (asked + HEADER + PAGE - 1) // PAGE * PAGE
                self.resident += size
                return Block(0, size, mapped=True)
            end = (self._top + asked + TOP_PAD + LEAST + PAGE - 1) // PAGE * PAGE
            self.resident += end - self._end
            self._end = end
        block = Block(self._top, asked, before=self._last)
        if self._last is not None:
            self._last.after = block
        self._last = block
        self._top += asked
        return block

    def _split(self, block: Block, size: int) -> Block:
        rest = Block(block.start + size, block.size - size, before=block, after=block.after)
        if block.after is not None:
            block.after.before = rest
        else:
            self._last = rest
        block.size, block.after = size, rest
        return rest

    def _unlist(self, block: Block) -> None:
        place = bisect_left(self._holes, (block.size, block.start))
        del self._holes[place], self._at[block.start]
