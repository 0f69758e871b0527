"""The groups of each optimizer step, and their masks, preferences and labels as tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from penchant.data.groups import PreferenceGroup
from penchant.engine.scoring import CandidateGroup
from penchant.objectives import Groups


@dataclass(frozen=True)
class Order:
    """The order of groups in a run: a function of the step, so that a checkpoint needs no position.

    Each epoch has every group once, in a new permutation; its last batch may be smaller.
    """

    groups: int
    batch_size: int
    seed: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.groups / self.batch_size)

    def batch(self, step: int) -> list[int]:
        """Indices of the groups of a 0-based step."""
        epoch, turn = divmod(step, self.steps_per_epoch)
        order = np.arange(self.groups)
        if self.shuffle:
            order = np.random.default_rng((self.seed, epoch)).permutation(self.groups)
        return order[turn * self.batch_size : (turn + 1) * self.batch_size].tolist()


References = Sequence[Sequence[Sequence[float]]]
"""[R][groups][candidates] log-probs, nats."""


@dataclass(frozen=True)
class StepBatch:
    """The groups of one optimizer step.

    Attributes:
        references: [R][groups][candidates] log-probs of the references.
        sums: metrics of the sampling: name -> (total, count).
        temperature: temperature of the sampling and of the log-probs in the loss; 1 for the data's own candidates.
    """

    groups: Sequence[CandidateGroup]
    references: References
    sums: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    temperature: float = 1.0


class BatchSource(Protocol):
    """The groups of each step: the data's own, fresh samples of the policy, or pictures with new noise."""

    @property
    def order(self) -> Order:
        """The order of the groups, or of the prompts; it says how many steps an epoch has."""
        ...

    def batch(self, step: int) -> StepBatch:
        """The groups of a 0-based step."""
        ...


@dataclass(frozen=True)
class Split:
    """Groups, with the references' log-probs."""

    groups: Sequence[CandidateGroup]
    references: References


@dataclass(frozen=True)
class FixedDataset:
    """The data's own groups, in an order."""

    split: Split
    order: Order

    def batch(self, step: int) -> StepBatch:
        members = self.order.batch(step)
        references = [[table[i] for i in members] for table in self.split.references]
        return StepBatch([self.split.groups[i] for i in members], references)


def group_tensors(groups: Sequence[PreferenceGroup], lengths: Sequence[Sequence[int]]) -> Groups:
    """Masks, preferences, scores and labels of G groups of at most K candidates; see `Groups`.

    Args:
        lengths: number of tokens of each candidate; 1 for a picture.
    """
    g, k = len(groups), max(map(len, lengths))
    tensors = Groups(
        mask=torch.zeros(g, k, dtype=torch.bool),
        tokens=torch.zeros(g, k, dtype=torch.int64),
        better=torch.zeros(g, k, k, dtype=torch.bool),
        scores=torch.zeros(g, k),
        scored=torch.zeros(g, k, dtype=torch.bool),
        labels=torch.zeros(g, k, dtype=torch.int64),
        weights=torch.tensor([group.weight for group in groups], dtype=torch.float32),
        mismatched=torch.zeros(g, k, dtype=torch.bool),
    )
    assert tensors.mismatched is not None
    for row, (preferences, token_counts) in enumerate(zip(groups, lengths, strict=True)):
        n = len(token_counts)
        tensors.mask[row, :n] = True
        tensors.tokens[row, :n] = torch.tensor(token_counts)
        if preferences.scores is not None:
            tensors.scores[row, :n] = torch.tensor(preferences.scores, dtype=torch.float32)
            tensors.scored[row, :n] = True
        if preferences.labels is not None:
            tensors.labels[row, :n] = torch.tensor([1 if label else -1 for label in preferences.labels])
        for i, j in preferences.pairs:
            tensors.better[row, i, j] = True
        if preferences.labels is None:
            # Pairs give labels to unpaired methods: a winner is desirable, a candidate that only loses is not.
            wins, loses = tensors.better[row].any(1), tensors.better[row].any(0)
            tensors.labels[row] = (wins & ~loses).long() - (loses & ~wins).long()
        if preferences.mismatched is not None:
            tensors.mismatched[row, preferences.mismatched] = True
            for table in (tensors.mask, tensors.scored, tensors.labels):
                table[row, preferences.mismatched] = 0
    return tensors


def padded_table(rows: Sequence[Sequence[float]], k: int) -> torch.Tensor:
    """A [G, K] float64 tensor of G rows of at most K numbers; 0 where a row has fewer."""
    table = torch.zeros(len(rows), k, dtype=torch.float64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return table
