"""Which keys each query of a packed row sees, and how the row is cut so that little else is computed.

A row's tokens are cut into *pieces*; a *tile* is some pieces' queries with the pieces whose keys they see. The prompt
attends to itself, causally. The responses follow in blocks, each with its prompt's keys and its own: neither time nor
memory is spent on pairs of responses, and masks stay thin.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from penchant.data.trees import Branches, TreeBatch

BLOCK = 64
"""Responses are taken together until they have this many tokens: fewer calls, at little attention nobody needs."""

MASK_ELEMENTS = 1 << 24
"""A long response needs no larger mask (64 MiB in float32): its prompt's attention is computed again instead."""

Span = tuple[int, int]
"""Start and end of tokens of one group."""


@dataclass(frozen=True)
class Tile:
    """Queries that attend together, and the keys they see; each by the numbers of its pieces.

    Attributes:
        causal: queries and keys are one plain causal sequence, whose last `wanted` outputs are the tile's.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    causal: bool
    wanted: int


class Tiling:
    """How a packed row is cut for layers of one window.

    Attributes:
        lengths: tokens of each piece, in the order of the row.
        tiles: their outputs, end to end, are the row's.
    """

    def __init__(self, branches: tuple[Branches, ...], positions: Tensor, window: int | None) -> None:
        self.lengths: list[int] = []
        self.tiles: list[Tile] = []
        self._window = window
        self._seen: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._biases: dict[tuple[int, torch.dtype], Tensor] = {}
        places = positions.split([branch.length for branch in branches])
        for branch, place in zip(branches, places, strict=True):
            self._add(branch, place, window)

    def bias(self, tile: int, dtype: torch.dtype) -> Tensor:
        """[queries, keys] what is added to the tile's scores: 0 where a key is seen, else -inf.

        A number and not a bool: attention would make numbers of it anew in each layer, and keep them for the backward.
        """
        key = (tile, dtype)
        if key not in self._biases:
            q_segment, q_position, k_segment, k_position = self._seen[tile]
            gap = q_position[:, None] - k_position[None, :]
            seen = ((q_segment[:, None] == k_segment[None, :]) | (k_segment[None, :] == 0)) & (gap >= 0)
            if self._window is not None:
                seen &= gap < self._window
            self._biases[key] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
        return self._biases[key]

    def _add(self, branch: Branches, place: Tensor, window: int | None) -> None:
        spans = list(_spans(branch, window))
        edges = sorted({edge for queries, keys, _ in spans for span in (queries, *keys) for edge in span})
        first = len(self.lengths)
        self.lengths += [end - start for start, end in itertools.pairwise(edges)]
        number = {edge: first + i for i, edge in enumerate(edges)}
        sizes = torch.tensor([branch.prompt, *branch.responses], device=place.device)
        segment = torch.repeat_interleave(torch.arange(len(sizes), device=place.device), sizes, output_size=len(place))
        for queries, keys, causal in spans:
            seen = torch.cat([torch.arange(*span, device=place.device) for span in keys])
            asked = seen if causal else torch.arange(*queries, device=place.device)
            self._seen.append((segment[asked], place[asked], segment[seen], place[seen]))
            pieces = tuple(i for start, end in keys for i in range(number[start], number[end]))
            own = tuple(range(number[queries[0]], number[queries[1]]))
            self.tiles.append(Tile(pieces if causal else own, pieces, causal, queries[1] - queries[0]))


def _spans(branch: Branches, window: int | None) -> Iterator[tuple[Span, list[Span], bool]]:
    """Queries, the keys they may see, and whether these are one plain causal sequence; in the order of the group."""
    p = branch.prompt
    if len(branch.responses) == 1 and window is None:
        yield (0, branch.length), [(0, branch.length)], True
        return
    if window is None:
        yield (0, p), [(0, p)], True
    else:
        for start, end in _rows((0, p), window):
            yield (start, end), [(max(0, start - window + 1), end)], False
    for start, end, alone in _blocks(branch):
        if alone and window is None and (end - start) * (p + end - start) > MASK_ELEMENTS:
            # With its prompt before it, one response is a plain causal sequence.
            yield (start, end), [(0, p), (start, end)], True
        elif alone and window is not None and end - start > max(window, BLOCK):
            for low, high in _rows((start, end), window):
                # The first key's place, counted from the response's first token.
                reach = low - start - window + 1
                prompt = [(max(0, p + reach), p)] if reach < 0 else []
                yield (low, high), [*prompt, (start + max(0, reach), high)], False
        else:
            seen = 0 if window is None else max(0, p - window + 1)
            yield (start, end), [(seen, p), (start, end)], False


def _rows(span: Span, window: int) -> Iterator[Span]:
    """Queries in runs of about the window, so that a run's keys are no more than twice as many."""
    for start in range(*span, max(window, BLOCK)):
        yield start, min(start + max(window, BLOCK), span[1])


def _blocks(branch: Branches) -> Iterator[tuple[int, int, bool]]:
    """Runs of whole responses of at least `BLOCK` tokens, and whether each is one response; a long one always is."""
    start, count, end = branch.prompt, 0, branch.prompt
    for n in branch.responses:
        if count and n >= BLOCK:
            yield start, end, count == 1
            start, count = end, 0
        end, count = end + n, count + 1
        if end - start >= BLOCK:
            yield start, end, count == 1
            start, count = end, 0
    if count:
        yield start, end, count == 1


class TreePlan:
    """A packed row as attention needs it; made once per micro-batch, read by every layer."""

    def __init__(self, batch: TreeBatch) -> None:
        self.device = batch.input_ids.device
        self.branches = batch.branches
        self._positions = batch.positions
        self._longest = max(branch.prompt + max(branch.responses) for branch in batch.branches)
        self._tilings: dict[int | None, Tiling] = {}

    def tiling(self, window: int | None) -> Tiling:
        """How the row is cut for a layer.

        Args:
            window: how many positions a query sees, itself included; counted in positions of the candidate's own
                sequence, not in indices of the row.
        """
        narrow = window if window is not None and window < self._longest else None
        if narrow not in self._tilings:
            self._tilings[narrow] = Tiling(self.branches, self._positions, narrow)
        return self._tilings[narrow]

    @cached_property
    def segments(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For variable-length kernels, with the prompt's keys and values gathered per candidate.

        Returns:
            gathered [S] int64: the row's index of each key; cumulative query and key lengths [1 + segments] int32;
            longest query and key segment.
        """
        gathered, queries, keys = [], [0], [0]
        start = 0
        for branch in self.branches:
            prompt = torch.arange(start, start + branch.prompt)
            start += branch.prompt
            gathered.append(prompt)
            queries.append(branch.prompt)
            keys.append(branch.prompt)
            for n in branch.responses:
                gathered += [prompt, torch.arange(start, start + n)]
                queries.append(n)
                keys.append(branch.prompt + n)
                start += n
        cumulative = [torch.tensor(x, device=self.device).cumsum(0).to(torch.int32) for x in (queries, keys)]
        return torch.cat(gathered).to(self.device), cumulative[0], cumulative[1], max(queries), max(keys)
