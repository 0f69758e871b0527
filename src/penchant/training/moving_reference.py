"""A primary reference that moves while the policy trains: a copy of the policy's trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from penchant.config.run import TrainingConfig
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World
from penchant.engine.scoring import Scorer, score_groups
from penchant.training.batches import References
from penchant.training.model import copy_trained_weights


class MovingReference:
    """The primary reference of a run that updates it.

    Up to the first update it is the reference that the configuration names, whose log-probs were computed before
    training. After an update it is the policy of that step, which reads the policy's tokens. Only the trained weights
    are copied: the frozen ones (of LoRA's base model) are the policy's. To score, policy and copy change places in
    memory, so that a reference is packed, sharded and rounded as the policy is.

    Args:
        scorer: the policy; sharded over the world where there are several processes.
    """

    def __init__(self, scorer: Scorer, settings: TrainingConfig, world: World) -> None:
        self._scorer, self._settings, self._world = scorer, settings, world
        self._weights = copy_trained_weights(scorer)
        self._step = torch.zeros((), dtype=torch.int64)

    @property
    def step(self) -> int:
        """Optimizer step of the policy that is the reference; 0 before the first update."""
        return int(self._step)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """All that a checkpoint holds of it; loading fills them in place."""
        return {"step": self._step, **{f"weights.{name}": copy for name, copy in self._weights.items()}}

    def update(self, step: int) -> None:
        """Make the policy, as it is after this many optimizer steps, the reference."""
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                self._weights[name].copy_(parameter.detach())
        self._step.fill_(step)

    def rescore(self, groups: Sequence[TokenizedGroup], references: References) -> References:
        """The references' log-probs of these groups with the primary's by the copied weights.

        Args:
            references: [R][groups][candidates] log-probs by the references that the configuration names; returned as
                they are before the first update.
        """
        if not self.step or not groups:
            return references
        with self._in_the_policys_place():
            primary = score_groups(
                self._scorer,
                groups,
                world=self._world,
                budget=self._settings.token_budget,
                dtype=self._settings.dtype,
            )
        return [primary, *references[1:]]

    @contextmanager
    def _in_the_policys_place(self) -> Iterator[None]:
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange the policy's trained weights and the copy, one parameter at a time, in place: FSDP keeps views."""
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                policy = parameter.detach().clone()
                parameter.copy_(self._weights[name])
                self._weights[name].copy_(policy)
