"""ORPO: likelihood and odds ratio in one stage, with no reference (Hong et al. 2024, arXiv 2403.07691)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, mean_log_probs, pair_metrics


@dataclass(frozen=True)
class ORPO(Stateless):
    """``L = NLL_w - lambda log sigma(logodds_w - logodds_l)`` (equations 6 and 7).

    ``logodds = p - log(1 - exp p)``, p the log-prob per token; NLL_w is the chosen response's, per token.

    Differs from TRL: NLL_w is of the response alone, each prompt weighing the same; there it is of prompt and response.

    Attributes:
        weight: lambda, of the odds-ratio term, >= 0; 0.1 to 1 in the paper.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    weight: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "orpo"
    needs: ClassVar[Needs] = Needs(references=0)

    def __post_init__(self) -> None:
        require(self.weight >= 0, "weight", self.weight, "a number of at least 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        means = mean_log_probs(policy, groups)
        # A probability of 1 has no odds: they end where float32 cannot tell it from 1.
        clamped = means.clamp(max=-1e-6)
        log_odds = clamped - torch.log(-torch.expm1(clamped))
        odds_terms = -logsigmoid(differences(log_odds, groups.better))
        terms = self.weight * odds_terms - means[:, :, None]
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, pair_metrics(self.weight * means, policy, groups))
