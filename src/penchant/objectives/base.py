"""The objective protocol: log-probs of a batch of groups in, losses and metrics out.

Shapes: G groups, K candidates (the most any group has; masked where a group has fewer), R references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

State = Mapping[str, Tensor]
"""What a method remembers between optimizer steps, by name; empty for most methods."""


@dataclass(frozen=True)
class Sum:
    """A mean before its division, so that micro-batches and ranks add up exactly."""

    total: Tensor
    count: Tensor


@dataclass(frozen=True)
class Groups:
    """What is known of a batch's candidates.

    Attributes:
        mask: [G, K] bool, True where a candidate exists.
        tokens: [G, K] int64, tokens in each candidate's log-prob.
        better: [G, K, K] bool, ``better[g, i, j]``: candidate i is preferred to candidate j.
        scores: [G, K] float32, where `scored`; higher is better.
        scored: [G, K] bool.
        labels: [G, K] int64, 1 desirable, -1 undesirable, 0 unknown.
        weights: [G] float32, what each group counts.
    """

    mask: Tensor
    tokens: Tensor
    better: Tensor
    scores: Tensor
    scored: Tensor
    labels: Tensor
    weights: Tensor

    def to(self, device: torch.device) -> Groups:
        return Groups(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class Output:
    """An objective's answer.

    Attributes:
        losses: [G] each group's loss, nats; 0 where its weight is 0.
        weights: [G] what each group counts in the mean; 0 where it has nothing to learn from.
        metrics: name -> (total, count); the mean is total / count over any number of batches.
    """

    losses: Tensor
    weights: Tensor
    metrics: Mapping[str, Sum]

    @property
    def loss(self) -> Sum:
        return Sum((self.losses * self.weights).sum(), self.weights.sum())


@runtime_checkable
class Objective(Protocol):
    """A preference method: a frozen dataclass whose fields are its hyper-parameters.

    Class attributes say what it needs; a run is checked against them before a model is loaded.
    `coupled`: whether a group's loss depends on the other groups of the optimizer batch.
    """

    name: ClassVar[str]
    references: ClassVar[int]
    min_candidates: ClassVar[int]
    needs_pairs: ClassVar[bool]
    coupled: ClassVar[bool]

    def initial_state(self) -> State: ...

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        """Losses and metrics of a batch.

        Args:
            policy: [G, K] log-probs, nats, float32 or better; masked slots may hold anything.
            reference: [R, G, K] log-probs of R frozen references, in the same dtype.
            groups: what is known of the candidates.
            state: from `initial_state` or the last training step; evaluation discards the returned one.
        """
        ...

    # Dataclass fields are read back into the saved configuration.
    __dataclass_fields__: ClassVar[dict[str, Any]]
