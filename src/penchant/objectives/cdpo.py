"""Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences"; in the code of arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, pair_metrics


@dataclass(frozen=True)
class CDPO(Stateless):
    """``L = -(1 - e) log sigma(beta h) - e log sigma(-beta h)``: cross-entropy with a share e of labels flipped.

    At pi == ref the loss is ln 2; its least value is at ``beta h = log((1 - e) / e)``. With e = 0 it is DPO.

    Differs from TRL 1.16, whose `sigmoid` loss ignores `label_smoothing`, so that cDPO asked for there is DPO.

    Attributes:
        beta: strength of the pull towards the reference, > 0.
        label_smoothing: e, the share of labels believed wrong, in [0, 0.5).
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 0.1
    label_smoothing: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "cdpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(0 <= self.label_smoothing < 0.5, "label_smoothing", self.label_smoothing, "a share in [0, 0.5)")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        margins = differences(rewards, groups.better)
        e = self.label_smoothing
        terms = -(1 - e) * logsigmoid(margins) - e * logsigmoid(-margins)
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
