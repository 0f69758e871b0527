"""Identity preference optimization (Azar et al. 2023, arXiv 2310.12036)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, mean_log_probs, pair_metrics


@dataclass(frozen=True)
class IPO(Stateless):
    """``L = (h - 1/(2 beta))^2`` (equation 17; beta is the paper's tau): a target margin instead of a bottomless one.

    At pi == ref the loss is 1/(4 beta^2).

    Differs from the paper, whose h is of summed log-probs (``log_ratio: sum``): by default h is of log-probs per
    token, as in TRL (agreed there with the authors), so that beta does not depend on length.

    Attributes:
        beta: tau, > 0; the target margin is 1/(2 beta), in nats per token or nats.
        log_ratio: ``mean`` over a candidate's tokens, or their ``sum``.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 0.1
    log_ratio: Literal["mean", "sum"] = "mean"
    average: Average = "groups"

    name: ClassVar[str] = "ipo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.log_ratio in ("mean", "sum"), "log_ratio", self.log_ratio, "'mean' or 'sum'")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        ratios = log_ratios(policy, reference[0], groups)
        if self.log_ratio == "mean":
            ratios = mean_log_probs(ratios, groups)
        terms = (differences(ratios, groups.better) - 1 / (2 * self.beta)) ** 2
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, pair_metrics(self.beta * ratios, policy, groups))
