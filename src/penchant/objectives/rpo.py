"""RPO: DPO with the likelihood of the chosen response (Pang et al. 2024, arXiv 2404.19733)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, Stateless, Sum, require
from penchant.objectives.pairs import (
    Average,
    average_pairs,
    differences,
    log_ratios,
    mean_log_probs,
    pair_metrics,
)


@dataclass(frozen=True)
class RPO(Stateless):
    """``L = -log sigma(beta h) - alpha log pi(y_w|x) / |y_w|`` (equation 1).

    The likelihood is per token of its own response, so that a short and a long one count alike; at pi == ref the loss
    is ln 2 plus alpha times it. With alpha = 0 it is DPO.

    Differs from the paper, where alpha weighs the other term: at the default of 1 both are the same. Differs from TRL's
    `rpo_alpha`, whose likelihood is a mean over the tokens of a micro-batch, and from `weighted_sum` of dpo and sft,
    where it is one over the tokens of the batch: there long responses count more.

    Attributes:
        beta: strength of the pull towards the reference, > 0.
        alpha: weight of the chosen response's negative log-likelihood, >= 0.
        average: over ``groups`` or ``pairs``, as in DPO.
    """

    beta: float = 0.1
    alpha: float = 1.0
    average: Average = "groups"

    name: ClassVar[str] = "rpo"

    def __post_init__(self) -> None:
        require(self.beta > 0, "beta", self.beta, "a number above 0")
        require(self.alpha >= 0, "alpha", self.alpha, "a number of at least 0")
        require(self.average in ("groups", "pairs"), "average", self.average, "'groups' or 'pairs'")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        rewards = self.beta * log_ratios(policy, reference[0], groups)
        likelihood = -mean_log_probs(policy, groups)[:, :, None].expand_as(groups.better)
        terms = -logsigmoid(differences(rewards, groups.better)) + self.alpha * likelihood
        losses, weights = average_pairs(terms, groups, self.average)
        means, counts = average_pairs(likelihood.detach(), groups, self.average)
        metrics = {**pair_metrics(rewards, policy, groups), "nll_loss": Sum((means * counts).sum(), counts.sum())}
        return Output(losses, weights, metrics)
