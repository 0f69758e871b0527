"""Keys that each query of a packed row sees, and tiles of the row in which little else is computed.

A *tile* is some queries of the row with the keys they see. The prompt attends to itself, causally. The responses follow
in blocks, each with its prompt's keys and its own: neither time nor memory is spent on pairs of responses, and masks
stay thin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from penchant.data.trees import Branches, TreeBatch, copy_together
from penchant.engine.device import has_flash_attention

BLOCK = 64
"""Short responses share a tile up to this many tokens: fewer kernel calls for little superfluous attention."""

MASK_ELEMENTS = 1 << 24
"""Elements of the largest mask (64 MiB in float32); a longer response's prompt is attended again instead."""

Span = tuple[int, int]
"""Start and end of tokens, of the row or of one group."""


@dataclass(frozen=True)
class Tile:
    """Queries that attend together, and the keys they see, by index in the row.

    Attributes:
        outputs: the queries whose outputs are the tile's.
        queries, keys: in spans, each ascending. Without keys the outputs are 0: nothing reads them.
        causal: queries and keys are one plain causal sequence, which ends with the tile's outputs.
    """

    outputs: Span
    queries: tuple[Span, ...]
    keys: tuple[Span, ...]
    causal: bool


class Tiling:
    """The tiles of a packed row for layers of one window.

    Args:
        last: whether only the last token's output of a prompt is read.

    Attributes:
        tiles: the tiles, whose outputs follow one another along the row.
    """

    def __init__(self, batch: TreeBatch, window: int | None, last: bool) -> None:
        self.tiles: list[Tile] = []
        self._positions, self._reach, self._window = batch.positions, batch.reach, window
        self._biases: dict[tuple[int, torch.dtype], Tensor] = {}
        start = 0
        for branch in batch.branches:
            for outputs, keys, causal in _spans(branch, window, last):
                output_spans, key_spans = (_join_spans(start, spans) for spans in ([outputs], keys))
                self.tiles.append(Tile(output_spans[0], key_spans if causal else output_spans, key_spans, causal))
            start += branch.length

    def bias(self, tile: int, dtype: torch.dtype) -> Tensor:
        """Bias [queries, keys] added to the tile's scores: 0 where a key is seen, else -inf.

        Numbers, since attention would convert a boolean mask in every layer and keep the result for the backward.
        """
        key = (tile, dtype)
        if key not in self._biases and isinstance(self._reach, FakeTensor):
            queries, keys = (span_length(spans) for spans in (self.tiles[tile].queries, self.tiles[tile].keys))
            self._biases[key] = self._reach.new_zeros((queries, keys), dtype=dtype)
        if key not in self._biases:
            query_positions, key_positions = (
                self._indices(spans) for spans in (self.tiles[tile].queries, self.tiles[tile].keys)
            )
            visible = (key_positions <= query_positions[:, None]) & (
                query_positions[:, None] < self._reach[key_positions]
            )
            if self._window is not None:
                visible &= self._positions[query_positions][:, None] - self._positions[key_positions] < self._window
            bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            self._biases[key] = bias.masked_fill_(~visible, -torch.inf)
        return self._biases[key]

    def _indices(self, spans: Sequence[Span]) -> Tensor:
        return torch.cat([torch.arange(*span) for span in spans]).to(self._reach.device)


def span_length(spans: Sequence[Span]) -> int:
    """Tokens in the spans."""
    return sum(end - start for start, end in spans)


def _join_spans(start: int, spans: Sequence[Span]) -> tuple[Span, ...]:
    """A group's spans as spans of the row, which the group begins at `start`; adjoining spans become one."""
    row_spans: list[Span] = []
    for low, high in spans:
        if row_spans and row_spans[-1][1] == start + low:
            row_spans[-1] = (row_spans[-1][0], start + high)
        elif high > low:
            row_spans.append((start + low, start + high))
    return tuple(row_spans)


def _spans(branch: Branches, window: int | None, last: bool) -> Iterator[tuple[Span, list[Span], bool]]:
    """Outputs, the keys they may see, and whether these are one plain causal sequence; in the order of the group."""
    p = branch.prompt
    if last:
        if p > 1:
            yield (0, p - 1), [], False
        yield (p - 1, p), [(0 if window is None else max(0, p - window), p)], False
    elif len(branch.responses) == 1 and window is None and not branch.forked:
        yield (0, branch.length), [(0, branch.length)], True
        return
    elif window is None:
        yield (0, p), [(0, p)], True
    else:
        for start, end in _query_runs((0, p), window):
            yield (start, end), [(max(0, start - window + 1), end)], False
    for start, end, is_single in _blocks(branch):
        if is_single and window is None and (end - start) * (p + end - start) > MASK_ELEMENTS:
            # With its prompt before it, one response is a plain causal sequence.
            yield (start, end), [(0, p), (start, end)], True
        elif is_single and window is not None and end - start > max(window, BLOCK):
            for low, high in _query_runs((start, end), window):
                # Index of the first key, counted from the response's first token.
                reach = low - start - window + 1
                prompt = [(max(0, p + reach), p)] if reach < 0 else []
                yield (low, high), [*prompt, (start + max(0, reach), high)], False
        else:
            first_key = 0 if window is None else max(0, p - window + 1)
            yield (start, end), [(first_key, p), (start, end)], False


def _query_runs(span: Span, window: int) -> Iterator[Span]:
    """Queries in runs of about the window, so that a run's keys are no more than twice as many."""
    for start in range(*span, max(window, BLOCK)):
        yield start, min(start + max(window, BLOCK), span[1])


def _blocks(branch: Branches) -> Iterator[tuple[int, int, bool]]:
    """Runs of whole responses of at least `BLOCK` tokens, and whether each is one response; a long one always is.

    Responses that fork are never one.
    """
    start, count, end = branch.prompt, 0, branch.prompt
    for n in branch.responses:
        if count and n >= BLOCK:
            yield start, end, count == 1 and not branch.forked
            start, count = end, 0
        end, count = end + n, count + 1
        if end - start >= BLOCK:
            yield start, end, count == 1 and not branch.forked
            start, count = end, 0
    if count:
        yield start, end, count == 1 and not branch.forked


def _read_indices(branches: Sequence[Branches], multiple: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    is_readable = np.concatenate([np.arange(b.length) >= (b.prompt - 1 if b.responses else b.length) for b in branches])
    padding = -int(is_readable.sum()) % multiple
    is_readable[np.flatnonzero(~is_readable)[:padding]] = True
    return np.flatnonzero(is_readable)


class GatheredSegments(NamedTuple):
    """Segments for variable-length kernels, with the prompt's keys and values gathered per candidate; no forks.

    Attributes:
        keys: [S] int64, the row's index of every key.
        ends: cumulative query lengths and key lengths, [1 + segments] int32.
        longest: tokens of the longest query segment and of the longest key segment.
    """

    keys: Tensor
    ends: tuple[Tensor, Tensor]
    longest: tuple[int, int]

    @classmethod
    def of_row(cls, branches: Sequence[Branches], device: torch.device) -> GatheredSegments:
        """The segments of a row that lies group after group, in one transfer to its device."""
        indices, queries, keys = [], [], []
        start = 0
        for branch in branches:
            prompt = torch.arange(start, start + branch.prompt)
            start += branch.prompt
            indices.append(prompt)
            queries += [branch.prompt, *branch.responses]
            keys += [branch.prompt, *(branch.prompt + n for n in branch.responses)]
            for n in branch.responses:
                indices += [prompt, torch.arange(start, start + n)]
                start += n
        ends = (torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (queries, keys))
        key_indices, query_ends, key_ends = copy_together([torch.cat(indices), *ends], device)
        return cls(key_indices, (query_ends, key_ends), (max(queries), max(keys)))


class TreePlan:
    """A packed row as its layers need it; made once per micro-batch.

    Args:
        multiple: `read_indices` is filled up to a multiple of this with indices that nobody needs.

    Attributes:
        read_indices: [R] int64, ascending: the row's indices whose last hidden state may be read (responses, and the
            prompts' last tokens).
        has_flash: whether the row's device has torch's flash attention.
        segments: the row's segments for that attention; None where it lacks it, lies prompts first or has forks.
        last_layer_plan: the plan of the last layer, where only the last token of a prompt is read.
    """

    def __init__(self, batch: TreeBatch, multiple: int = 1) -> None:
        self.device = batch.input_ids.device
        self.branches = batch.branches
        self.forked = any(branch.forked for branch in batch.branches)
        self._batch = batch
        self._longest = max(branch.prompt + max(branch.responses, default=0) for branch in batch.branches)
        self.prompts_first = batch.prompts_first
        if batch.prompts_first is None:
            self.read_indices = torch.from_numpy(_read_indices(batch.branches, multiple)).to(self.device)
        else:
            self.read_indices = batch.prompts_first.readable
        self.has_flash = has_flash_attention(self.device)
        is_gathered = self.has_flash and self.prompts_first is None and not self.forked
        self.segments = GatheredSegments.of_row(self.branches, self.device) if is_gathered else None
        self._tilings: dict[int | None, Tiling] = {}
        self._last = False
        # Attributes are made here: a compiled layer cannot enter the lock of a cached property.
        self.last_layer_plan = copy(self)
        self.last_layer_plan._tilings, self.last_layer_plan._last = {}, True

    def tiling(self, window: int | None) -> Tiling:
        """The tiling of the row for a layer.

        Args:
            window: how many positions a query sees, itself included; counted in positions of the candidate's own
                sequence, not in indices of the row.
        """
        narrow = window if self.narrows(window) else None
        if narrow not in self._tilings:
            self._tilings[narrow] = Tiling(self._group_after_group, narrow, self._last)
        return self._tilings[narrow]

    @property
    def _group_after_group(self) -> TreeBatch:
        """The batch whose positions are of a row that lies group after group, as tiles do."""
        layout = self.prompts_first
        return (
            self._batch
            if layout is None
            else replace(self._batch, positions=self._batch.positions[layout.inverse_order])
        )

    def narrows(self, window: int | None) -> bool:
        """Whether a window hides any key of this row from its candidates."""
        return window is not None and window < self._longest
