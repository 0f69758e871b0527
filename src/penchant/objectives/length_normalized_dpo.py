"""Length-normalised DPO (Lambert et al. 2024, Tulu 3, arXiv 2411.15124)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, mean_log_probs, pair_metrics


@dataclass(frozen=True)
class LengthNormalizedDPO(Stateless):
    """``L = -log sigma(beta (Delta_w / |y_w| - Delta_l / |y_l|))`` (section 5.1): DPO of log-ratios per token.

    At pi == ref the loss is ln 2.

    Differs from TRL in name alone (`sigmoid_norm` there), and in that K may exceed 2.

    Attributes:
        beta: scale of the log-ratio per token, > 0; 5 in the paper.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 5.0
    average: Average = "groups"

    name: ClassVar[str] = "length_normalized_dpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * mean_log_probs(log_ratios(policy, reference[0], groups), groups)
        losses, weights = average_pairs(-logsigmoid(differences(rewards, groups.better)), groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
