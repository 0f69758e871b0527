"""SimPO: length-normalised, with no reference (Meng et al. 2024, arXiv 2405.14734)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Needs, Output, Stateless, require
from penchant.objectives.pairs import Average, average_pairs, differences, mean_log_probs, pair_metrics


@dataclass(frozen=True)
class SimPO(Stateless):
    """``L = -log sigma(beta (mean log pi(y_w) - mean log pi(y_l)) - gamma)`` (equation 6).

    Where both candidates have the same log-prob per token the loss is softplus(gamma).

    Differs from TRL in nothing but the default: `gamma` is subtracted as it stands (the paper's gamma, not gamma/beta).

    Attributes:
        beta: scale of the log-prob per token, > 0; 2 or 2.5 in the paper, up to 10 in the authors' later advice.
        gamma: margin to reach, in [0, beta]; 0.3 to 1.6 in the paper. Tune gamma / beta, the margin in nats per token,
            from 0.5 within [0, 1]. DPO's beta of 0.1 is far too small: gamma would be out of reach.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 2.0
    gamma: float = 1.0
    average: Average = "groups"

    name: ClassVar[str] = "simpo"
    needs: ClassVar[Needs] = Needs(references=0)

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        margin = f"a number from 0 to beta ({self.beta}): gamma / beta is a margin in nats per token, tuned in [0, 1]"
        require(0 <= self.gamma <= self.beta, "gamma", self.gamma, margin)
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * mean_log_probs(policy, groups)
        terms = -logsigmoid(differences(rewards, groups.better) - self.gamma)
        losses, weights = average_pairs(terms, groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups))
