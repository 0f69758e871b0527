"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, log_ratios, pair_metrics


@dataclass(frozen=True)
class DPO(Stateless):
    """``L = -log sigma(beta h)``, ``h = Delta(y_w) - Delta(y_l)``, ``Delta = log pi - log ref`` (equation 7).

    At pi == ref the loss is ln 2. A group with K > 2 candidates has a loss for each pair of which one is preferred.

    Differs from TRL: K may exceed 2, and ties are counted (`rewards/ties`) instead of passing as errors.

    Attributes:
        beta: strength of the pull towards the reference, > 0; 0.1 in the paper, 0.5 for summaries.
        average: over ``groups`` (each prompt weighs the same) or ``pairs`` (each comparison does); equal at K = 2.
    """

    beta: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "dpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        losses, weights = average_pairs(-logsigmoid(differences(rewards, groups.better)), groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
