"""A reward model of scores (Wang et al. 2024, HelpSteer2, arXiv 2406.08673, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless, Sum
from penchant.objectives.bradley_terry import reward_metrics


@dataclass(frozen=True)
class RewardRegression(Stateless):
    """``L = (r - score)^2``, mean over a group's scored candidates.

    Differs from the paper, which regresses on five attributes at once; here a candidate has one score.
    """

    name: ClassVar[str] = "reward_regression"
    needs: ClassVar[Needs] = Needs(references=0, candidates=1, pairs=False, scores=True, trains="rewards")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        scored = groups.mask & groups.scored
        errors = torch.where(scored, policy - groups.scores, 0.0)
        count = scored.sum(1)
        losses = (errors**2).sum(1) / count.clamp(min=1)
        metrics = {**reward_metrics(policy, groups), "score/error": Sum(errors.abs().sum().detach(), count.sum())}
        return Output(losses, torch.where(count > 0, groups.weights, 0.0), metrics)
