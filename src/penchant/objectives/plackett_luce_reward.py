"""A reward model of rankings (Plackett 1975; Zhu et al. 2023, arXiv 2301.11270, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless
from penchant.objectives.bradley_terry import reward_metrics
from penchant.objectives.pairs import ranking_losses


@dataclass(frozen=True)
class PlackettLuceReward(Stateless):
    """``L = -sum_k [r(tau_k) - logsumexp_{j >= k} r(tau_j)]`` over a ranking tau, r the reward model's own output.

    With K = 2 it is Bradley-Terry; where all rewards are equal a full ranking of K gives ln K!.

    Differs from the formula where a ranking has ties or gaps, as `plackett_luce` does.
    """

    name: ClassVar[str] = "plackett_luce_reward"
    needs: ClassVar[Needs] = Needs(references=0, trains="rewards")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = torch.where(groups.mask, policy, 0.0)
        losses, ranked = ranking_losses(rewards, groups.better)
        return Output(losses, torch.where(ranked, groups.weights, 0.0), reward_metrics(rewards, groups))
