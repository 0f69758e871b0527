"""A reward model of pairs (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, equation 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, Stateless, Sum, require
from penchant.objectives.pairs import Average, average_pairs, differences, pair_metrics


@dataclass(frozen=True)
class BradleyTerry(Stateless):
    """``L = -log sigma(r_w - r_l) + centering (r_w + r_l)^2``, r the reward model's own output.

    Where both rewards are 0 the loss is ln 2.

    Differs from TRL in that K may exceed 2 and ties are counted; the centering term is TRL's (arXiv 2312.09244).

    Attributes:
        centering: weight of the squared sum of rewards, >= 0, which fixes the level that pairs leave free.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    centering: float = 0.0
    average: Average = "groups"

    name: ClassVar[str] = "bradley_terry"
    needs: ClassVar[Needs] = Needs(references=0, trains="rewards")

    def __post_init__(self) -> None:
        require(self.centering >= 0, "centering", self.centering, "a number of at least 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = torch.where(groups.mask, policy, 0.0)
        sums = rewards[:, :, None] + rewards[:, None, :]
        terms = -logsigmoid(differences(rewards, groups.better)) + self.centering * sums**2
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, reward_metrics(rewards, groups))


def reward_metrics(rewards: Tensor, groups: Groups) -> dict[str, Sum]:
    """`pair_metrics` of a reward model's own rewards [G, K]; it has no log-probs."""
    metrics = pair_metrics(rewards, rewards, groups)
    return {name: value for name, value in metrics.items() if name.startswith("rewards/")}
