"""Packing: whole groups laid end to end in one row, each prompt once with its candidates branching off it.

Shapes: T tokens of the row, N candidate tokens to predict, G groups, K candidates (the most any group has),
C candidates in all.

    [prompt | y1 | y2 | ... | yK | prompt' | y1' | ...]

or, for a GPU's kernels, all prompts first and then all candidates:

    [prompt | prompt' | ... | y1 | y2 | ... | yK | y1' | ...]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import pad

from penchant.data.tokenized import Ids, TokenizedGroup


@dataclass(frozen=True)
class Branches:
    """The layout of one group in the row: its prompt, then its candidates.

    Attributes:
        prompt: number of prompt tokens.
        responses: number of tokens of each candidate.
        forked: whether candidates share the tokens of a common beginning; an entry of `responses` then counts the
            tokens of all candidates that begin with the same token.
    """

    prompt: int
    responses: tuple[int, ...]
    forked: bool = False

    @property
    def length(self) -> int:
        """Number of tokens of the group in the row."""
        return self.prompt + sum(self.responses)


@dataclass(frozen=True)
class PromptsFirst:
    """The layout of a row that holds all P prompt tokens first.

    Attributes:
        order: [T] int64, index of each token in a row of the same groups that lies group after group.
        inverse_order: [T] int64, its inverse: index in this row of each token of the other.
        readable: [R] int64, ascending: indices whose last hidden state may be read.
        prompts: [G + 1] int32, cumulative tokens of prompts.
        groups: [G + 1] int32, cumulative tokens of all candidates of a group.
        candidates: [C + 1] int32, cumulative tokens of candidates.
        tokens: P.
        longest: tokens of the longest prompt, of the longest group's candidates, and of the longest candidate.
    """

    order: Tensor
    inverse_order: Tensor
    readable: Tensor
    prompts: Tensor
    groups: Tensor
    candidates: Tensor
    tokens: int
    longest: tuple[int, int, int]


@dataclass(frozen=True)
class TreeBatch:
    """Groups packed for one forward pass.

    Attributes:
        input_ids: [T] int64, token ids of the row.
        positions: [T] int64, position of each token, which restarts after the prompt for each candidate.
        reach: [T] int64, index in the row after the last token that attends to this one; of a row that lies group
            after group, also where this one does not.
        branches: G layouts, in the order of the row.
        source: [N] int64, index in the row of the hidden state that predicts each target.
        targets: [N] int64, token ids to predict, in order.
        paths: [sum of lengths] int64, indices into `targets` of each candidate, candidate after candidate.
        lengths: [C] int64, number of targets of each candidate.
        ends: [C] int64, index in the row of each candidate's last token.
        slots: [C] int64, index of each candidate in the flattened [G, K].
        shape: (G, K).
        loss_mask: [tokens of all candidates] bool, candidate after candidate, True for targets; None where all are.
        temperature: divisor of the logits before the softmax; 1 is the model's own distribution.
        prompts_first: the layout of a row that holds all prompts first; None where it lies group after group.
    """

    input_ids: Tensor
    positions: Tensor
    reach: Tensor
    branches: tuple[Branches, ...]
    source: Tensor
    targets: Tensor
    paths: Tensor
    lengths: Tensor
    ends: Tensor
    slots: Tensor
    shape: tuple[int, int]
    loss_mask: Tensor | None = None
    temperature: float = 1.0
    prompts_first: PromptsFirst | None = None

    def to(self, device: torch.device) -> TreeBatch:
        """The batch with its tensors on a device."""
        layout = self.prompts_first
        batch_tensors, layout_tensors = (
            {name: value for name, value in vars(part).items() if isinstance(value, Tensor)} if part else {}
            for part in (self, layout)
        )
        copies = iter(copy_together([*batch_tensors.values(), *layout_tensors.values()], device))
        batch: dict[str, Any] = dict(zip(batch_tensors, copies, strict=False))
        if layout is not None:
            layout_copies: dict[str, Any] = dict(zip(layout_tensors, copies, strict=True))
            batch["prompts_first"] = replace(layout, **layout_copies)
        return replace(self, **batch)

    def pad_to_multiple(self, multiple: int) -> TreeBatch:
        """The batch padded to a multiple of tokens by a prompt without candidates, to which no token attends."""
        padding = -len(self.input_ids) % multiple
        if not padding:
            return self
        ids = pad(self.input_ids, (0, padding))
        positions = torch.cat([self.positions, torch.arange(padding, device=self.positions.device)])
        reach = pad(self.reach, (0, padding), value=len(ids))
        branches = (*self.branches, Branches(padding, ()))
        return replace(self, input_ids=ids, positions=positions, reach=reach, branches=branches)

    def to_group_matrix(self, values: Tensor) -> Tensor:
        """[G, K] values by group and candidate, from [C] values; 0 in empty slots."""
        k = self.shape[1]
        empty, slots = torch.zeros(self.shape, dtype=values.dtype, device=values.device), self.slots.to(values.device)
        return empty.index_put((slots // k, slots % k), values)


def pack(groups: Sequence[TokenizedGroup], temperature: float = 1.0) -> TreeBatch:
    """The groups as one row; a group with fewer candidates than the widest has empty slots in [G, K].

    Args:
        groups: the G tokenized groups.
        temperature: divisor of the logits before the softmax.
    """
    k = max(len(group.responses) for group in groups)
    ids, positions, reach, source, targets, lengths, ends, slots = [], [], [], [], [], [], [], []
    start = 0
    for g, group in enumerate(groups):
        p = len(group.prompt)
        ids.append(group.prompt)
        positions.append(np.arange(p))
        reach.append(np.full(p, start + group.length))
        last_of_prompt = start + p - 1
        start += p
        for c, (response, mask) in enumerate(zip(group.responses, group.masks, strict=True)):
            n = len(response)
            ids.append(response)
            positions.append(np.arange(p, p + n))
            reach.append(np.full(n, start + n))
            source.append(np.concatenate(([last_of_prompt], np.arange(start, start + n - 1)))[mask])
            targets.append(response[mask])
            lengths.append(int(mask.sum()))
            slots.append(g * k + c)
            start += n
            ends.append(start - 1)
    return TreeBatch(
        input_ids=as_tensor(np.concatenate(ids)),
        positions=as_tensor(np.concatenate(positions)),
        reach=as_tensor(np.concatenate(reach)),
        branches=tuple(Branches(len(g.prompt), tuple(map(len, g.responses))) for g in groups),
        source=as_tensor(np.concatenate(source)),
        targets=as_tensor(np.concatenate(targets)),
        paths=torch.arange(sum(lengths)),
        lengths=torch.tensor(lengths),
        ends=torch.tensor(ends),
        slots=torch.tensor(slots),
        shape=(len(groups), k),
        loss_mask=pack_loss_mask(groups),
        temperature=temperature,
    )


def with_prompts_first(batch: TreeBatch) -> TreeBatch:
    """The same batch, on the CPU and without padding, as a row that holds all prompts first."""
    lengths = np.array([(branch.prompt, sum(branch.responses)) for branch in batch.branches])
    row = np.arange(lengths.sum())
    parts = np.split(row, lengths.ravel().cumsum()[:-1])
    order = np.concatenate([*parts[::2], *parts[1::2]])
    inverse_order = np.empty_like(order)
    inverse_order[order] = row
    prompts, candidates = lengths[:, 0], [n for branch in batch.branches for n in branch.responses]
    ends, tokens = prompts.cumsum(), int(prompts.sum())
    layout = PromptsFirst(
        order=as_tensor(order),
        inverse_order=as_tensor(inverse_order),
        # Candidates, and the last token of every prompt.
        readable=as_tensor(np.concatenate([ends - 1, row[tokens:]])),
        prompts=_cumulated(prompts),
        groups=_cumulated(lengths[:, 1]),
        candidates=_cumulated(candidates),
        tokens=tokens,
        longest=(int(prompts.max()), int(lengths[:, 1].max()), max(candidates)),
    )
    return replace(
        batch,
        input_ids=batch.input_ids[layout.order],
        positions=batch.positions[layout.order],
        source=layout.inverse_order[batch.source],
        ends=layout.inverse_order[batch.ends],
        prompts_first=layout,
    )


def _cumulated(lengths: Any) -> Tensor:
    return torch.from_numpy(np.concatenate(([0], np.cumsum(lengths))).astype(np.int32))


def copy_together(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of tensors on a device: to a GPU in one transfer from pinned memory, which the host does not wait for."""
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    # Every tensor begins at a multiple of 8 bytes, as its elements may need.
    parts = [pad(tensor.contiguous().view(-1).view(torch.uint8), (0, -tensor.nbytes % 8)) for tensor in tensors]
    buffer = torch.cat(parts)
    if not isinstance(buffer, FakeTensor):  # Tensors without data lie in no memory.
        buffer = buffer.pin_memory()
    buffer = buffer.to(device, non_blocking=True)
    pieces = buffer.split([len(part) for part in parts])
    return [
        piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]


def pack_loss_mask(groups: Sequence[TokenizedGroup]) -> Tensor | None:
    """[tokens of all candidates] bool, candidate after candidate: True for trained tokens; None where all are."""
    if all(group.loss_masks is None for group in groups):
        return None
    return torch.from_numpy(np.concatenate([mask for group in groups for mask in group.masks]))


def split_into_micro_batches(costs: Sequence[int], budget: int) -> list[list[int]]:
    """Micro-batches of at most `budget` tokens, by best fit of the longest groups first.

    A group above the budget gets a micro-batch of its own, because a group is never split. The result is deterministic.

    Args:
        costs: number of tokens of each group.
        budget: maximum number of tokens of a micro-batch.

    Returns:
        Lists of indices into `costs`, in ascending order each, ordered by their first index.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        fits = [b for b, space in enumerate(room) if space >= costs[index]]
        if fits:
            best = min(fits, key=lambda b: (room[b], b))
            bins[best].append(index)
            room[best] -= costs[index]
        else:
            bins.append([index])
            room.append(budget - costs[index])
    return sorted(sorted(members) for members in bins)


def as_tensor(values: Ids) -> Tensor:
    """The array as an int64 tensor."""
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64))
