"""A primary reference that is updated during training: a copy of the policy's trained weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from penchant.config.run_sections import TrainingConfig
from penchant.engine.distributed import World
from penchant.engine.scorer import CandidateGroup, Scorer
from penchant.engine.scoring import score_groups
from penchant.training.batches import References
from penchant.training.model import copy_trained_weights


class MovingReference:
    """The primary reference of a run with `reference_update`.

    Before the first update it is the configured reference, whose log-probs were computed before training. After an
    update it is the policy of that step, which reads the policy's tokens. Only trained weights are copied: frozen ones
    (LoRA's base model) are shared. To score, policy and copy are swapped in memory, so that the reference is packed,
    sharded and rounded as the policy is.

    Args:
        scorer: the policy; sharded over the world where there are several processes.
    """

    def __init__(self, scorer: Scorer, settings: TrainingConfig, world: World) -> None:
        self._scorer, self._settings, self._world = scorer, settings, world
        self._weights = copy_trained_weights(scorer)
        self._step = torch.zeros((), dtype=torch.int64)

    @property
    def step(self) -> int:
        """The optimizer step of the copied policy; 0 before the first update."""
        return int(self._step)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors to save in a checkpoint, in the shapes of the weights; loading fills them in place."""
        return {"step": self._step, **{f"weights.{name}": copy for name, copy in self._weights.items()}}

    def update(self, step: int) -> None:
        """Copy the policy's weights, as they are after this many optimizer steps."""
        for name, parameter in self._scorer.named_parameters():
            if parameter.requires_grad:
                self._weights[name].copy_(parameter.detach())
        self._step.fill_(step)

    def rescore(self, groups: Sequence[CandidateGroup], references: References) -> References:
        """The references' log-probs of these groups, the primary's computed with the copied weights.

        Args:
            references: [R][groups][candidates] log-probs of the configured references; returned unchanged before the
                first update.
        """
        if not self.step or not groups:
            return references
        with self._swapped_in():
            primary = score_groups(
                self._scorer,
                groups,
                world=self._world,
                budget=self._settings.resolved_token_budget,
                dtype=self._settings.resolved_dtype,
            )
        return [primary, *references[1:]]

    @contextmanager
    def _swapped_in(self) -> Iterator[None]:
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
