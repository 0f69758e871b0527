"""DPO of rankings (Rafailov et al. 2023, arXiv 2305.18290, appendix A.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Output, Stateless, require
from penchant.objectives.pairs import log_ratios, pair_metrics, ranking_losses


@dataclass(frozen=True)
class PlackettLuce(Stateless):
    """``L = -sum_k [beta Delta(tau_k) - logsumexp_{j >= k} beta Delta(tau_j)]`` over a ranking tau (equation 20).

    With K = 2 it is DPO; at pi == ref a full ranking of K gives ln K!.

    Differs from the paper where a ranking has ties or gaps: each candidate is set against those it is preferred to,
    which is the formula for a full ranking and leaves out comparisons nobody made.

    Attributes:
        beta: strength of the pull towards the reference, > 0.
    """

    beta: float = 0.1

    name: ClassVar[str] = "plackett_luce"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        losses, ranked = ranking_losses(rewards, groups.better)
        return Output(losses, torch.where(ranked, groups.weights, 0.0), pair_metrics(rewards, policy, groups))
