"""Softmax-DPO: one positive against many negatives (Chen et al. 2024, arXiv 2406.09215)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from penchant.objectives.base import Groups, Output, Stateless, Sum, require
from penchant.objectives.pairs import beaten_logsumexp, log_ratios, pair_metrics


@dataclass(frozen=True)
class SDPO(Stateless):
    """``L = softplus(logsumexp_{d in D} beta (Delta_d - Delta_p))``: cross-entropy with the positive p.

    With one negative it is DPO; at pi == ref it is ln(1 + |D|). The gradient weighs negatives by their softmax.

    Differs from the authors' code, whose exp and log overflow at differences of 100; and a group may have several
    positives (candidates nothing is preferred to, each against those it beats): the group's loss is then their mean.

    Attributes:
        beta: strength of the pull towards the reference, > 0; 1 in the paper.
    """

    beta: float = 1.0

    name: ClassVar[str] = "s_dpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        positive = groups.better.any(2) & ~groups.better.any(1)
        count = positive.sum(1)
        terms = softplus(beaten_logsumexp(rewards, groups.better) - rewards)
        losses = torch.where(positive, terms, 0.0).sum(1) / count.clamp(min=1)
        metrics = pair_metrics(rewards, policy, groups)
        metrics["rewards/accuracies"] = _above_all(rewards, positive, groups.better)
        return Output(losses, torch.where(count > 0, groups.weights, 0.0), metrics)


def _above_all(rewards: Tensor, positive: Tensor, better: Tensor) -> Sum:
    """Positives whose reward is above that of *all* their negatives: mean within a group, then over groups."""
    with torch.no_grad():
        hardest = torch.where(better, rewards[:, None, :], -torch.inf).amax(2)
        count = positive.sum(1)
        right = (positive & (rewards > hardest)).sum(1) / count.clamp(min=1)
        return Sum(right.to(rewards.dtype).sum(), (count > 0).to(rewards.dtype).sum())
