"""Robust DPO: unbiased under label noise (Chowdhury et al. 2024, arXiv 2403.00409)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, pair_metrics


@dataclass(frozen=True)
class RobustDPO(Stateless):
    """``L = [-(1 - e) log sigma(beta h) + e log sigma(-beta h)] / (1 - 2e)`` (section 3.1).

    Its expectation over labels flipped with probability e is DPO's loss on the true labels. At pi == ref it is ln 2;
    it can be negative. With e = 0 it is DPO.

    Differs from TRL: e out of range is refused there with a warning only; K may exceed 2 here.

    Attributes:
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: e, the known share of flipped labels, in [0, 0.5).
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 0.1
    label_smoothing: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "robust_dpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a share in [0, 0.5)")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        margins = differences(rewards, groups.better)
        e = self.label_smoothing
        terms = (-(1 - e) * logsigmoid(margins) + e * logsigmoid(-margins)) / (1 - 2 * e)
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
