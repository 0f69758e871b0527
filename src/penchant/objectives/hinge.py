"""The hinge loss of SLiC on log-ratios (Zhao et al. 2023, arXiv 2305.10425; named so in arXiv 2309.06657)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import relu

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, pair_metrics


@dataclass(frozen=True)
class Hinge(Stateless):
    """``L = max(0, 1 - beta h)``: nothing more is learnt from a pair whose margin has reached 1.

    At pi == ref the loss is 1.

    Differs from SLiC, whose margin is of plain log-probs and which adds a likelihood term; for that, see weighted_sum.

    Attributes:
        beta: strength of the pull towards the reference, > 0; 1/beta is the margin in nats.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "hinge"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        losses, weights = average_pairs(relu(1 - differences(rewards, groups.better)), groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
