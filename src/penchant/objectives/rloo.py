"""REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless, Sum, require
from penchant.objectives.pairs import log_ratios


@dataclass(frozen=True)
class RLOO(Stateless):
    """``L = -mean_i A_i log pi(y_i|x)``, ``A_i = R_i - mean_{j != i} R_j``, ``R_i = score_i - beta Delta_i``.

    A_i has no gradient (section 3). The y_i are to be the policy's own samples, as `candidates: sampled` draws them; at
    a `sampling.temperature` T, pi and ref are the softmax of their logits / T, which they are drawn from. The metric
    `kl` is then the KL between those two.

    Differs from TRL: no clipping and no importance ratio; a sample counts as a whole, with all its tokens.

    Attributes:
        beta: weight of the KL to the reference, in scores per nat, >= 0.
    """

    beta: float = 0.05

    name: ClassVar[str] = "rloo"
    needs: ClassVar[Needs] = Needs(candidates=2, pairs=False, scores=True, on_policy=True)

    def __post_init__(self) -> None:
        require(self.beta >= 0, "beta", self.beta, "a number of at least 0")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        scored = groups.mask & groups.scored
        k = scored.sum(1, keepdim=True)
        ratios = log_ratios(policy, reference[0], groups).detach()
        returns = torch.where(scored, groups.scores - self.beta * ratios, 0.0)
        # R_i - mean of the others = (R_i - mean of all) k / (k - 1)
        centred = returns - returns.sum(1, keepdim=True) / k.clamp(min=1)
        advantages = centred * k / (k - 1).clamp(min=1)
        losses = -torch.where(scored, advantages * policy, 0.0).sum(1) / k[:, 0].clamp(min=1)
        weights = torch.where(k[:, 0] > 1, groups.weights, 0.0)

        def mean(values: Tensor) -> Sum:
            return Sum(torch.where(scored, values, 0.0).sum(), scored.sum().to(values.dtype))

        metrics = {"reward": mean(groups.scores), "kl": mean(ratios), "advantage/squared": mean(advantages**2)}
        return Output(losses, weights, metrics)
