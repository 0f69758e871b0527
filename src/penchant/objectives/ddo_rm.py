"""DDO-RM: reward-guided decision distributions (arXiv 2604.11119)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, Stateless, require
from penchant.objectives.decisions import NEVER, decision_metrics
from penchant.objectives.pairs import log_ratios, mean_log_probs


@dataclass(frozen=True)
class DDORM(Stateless):
    """``L = -sum_i q_i log p_i``, ``p = softmax(s / tau)``, ``q = softmax((s + eta c) / tau)``, c the centred reward.

    s_i is the policy's log-prob per token, r_i the reward; q has no gradient, so dL/ds_i = (p_i - q_i) / tau: one step
    of KL-regularised mirror descent. Where rewards are equal q is p and nothing is learnt. The loss is no measure of
    progress (its target moves): watch `ddo_rm/expected_reward`.

    Differs from the authors' code, which lets the gradient through q (``detach_target: false``): that sharpens what
    the policy prefers already, and can work against the reward.

    Attributes:
        eta: step towards the reward, > 0.
        tau: temperature, > 0.
        detach_target: whether q is a constant.
        score: s is the ``mean_log_prob``, the summed ``log_prob``, or beta times the ``log_ratio`` to a reference.
        rewards: the data's ``scores``, or ``wins``: (wins - losses) / (K - 1) by its preferences.
        standardize: rewards as they are (``none``), or to mean 0 and deviation 1 for each ``prompt``.
        kl: weight of KL(p || p_ref), the reference's distribution by the same score; >= 0.
        beta: scale of the log-ratio score, > 0.
    """

    eta: float = 1.0
    tau: float = 1.0
    detach_target: bool = True
    score: Literal["mean_log_prob", "log_prob", "log_ratio"] = "mean_log_prob"
    rewards: Literal["scores", "wins"] = "scores"
    standardize: Literal["none", "prompt"] = "none"
    kl: float = 0.0
    beta: float = 0.1

    name: ClassVar[str] = "ddo_rm"

    def __post_init__(self) -> None:
        for field in ("eta", "tau", "beta"):
            require(getattr(self, field) > 0, field, getattr(self, field), "a number above 0")
        require(self.kl >= 0, "kl", self.kl, "a number of at least 0")
        scores = ("mean_log_prob", "log_prob", "log_ratio")
        require(self.score in scores, "score", self.score, f"one of {', '.join(scores)}")
        require(self.rewards in ("scores", "wins"), "rewards", self.rewards, "'scores' or 'wins'")
        require(self.standardize in ("none", "prompt"), "standardize", self.standardize, "'none' or 'prompt'")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        referenced = int(self.score == "log_ratio" or self.kl > 0)
        return Needs(references=referenced, pairs=self.rewards == "wins", scores=self.rewards == "scores")

    def output(self, policy: Tensor, reference: Tensor, groups: Groups) -> Output:
        used = groups.mask & (groups.scored if self.rewards == "scores" else groups.mask)
        rewards = self._rewards(groups, used).to(policy)
        scores = self._scores(policy, reference, groups)
        log_p = torch.where(used, scores / self.tau, NEVER).log_softmax(1)
        # Centring the reward would shift every logit alike: q is the same without it.
        log_q = torch.where(used, (scores + self.eta * rewards) / self.tau, NEVER).log_softmax(1)
        q = log_q.detach().exp() if self.detach_target else log_q.exp()
        terms = -q * log_p
        if self.kl:
            anchor = self._scores(reference[0], reference, groups)
            log_ref = torch.where(used, anchor / self.tau, NEVER).log_softmax(1)
            terms = terms + self.kl * log_p.exp() * (log_p - log_ref)
        # Where one candidate is used p and q are 1, and its term 0.
        losses = torch.where(used, terms, 0.0).sum(1)
        several = used.sum(1) > 1
        metrics = decision_metrics(log_p, log_q, rewards, scores, groups, used & several[:, None])
        return Output(losses, torch.where(several, groups.weights, 0.0), metrics)

    def _scores(self, policy: Tensor, reference: Tensor, groups: Groups) -> Tensor:
        if self.score == "mean_log_prob":
            return mean_log_probs(policy, groups)
        if self.score == "log_ratio":
            return self.beta * log_ratios(policy, reference[0], groups)
        return policy

    def _rewards(self, groups: Groups, used: Tensor) -> Tensor:
        count = used.sum(1, keepdim=True)
        if self.rewards == "wins":
            rewards = (groups.better.sum(2) - groups.better.sum(1)) / (count - 1).clamp(min=1)
        else:
            rewards = groups.scores
        rewards = torch.where(used, rewards, 0.0)
        if self.standardize == "none":
            return rewards
        centred = torch.where(used, rewards - rewards.sum(1, keepdim=True) / count.clamp(min=1), 0.0)
        deviation = ((centred**2).sum(1, keepdim=True) / count.clamp(min=1)).sqrt()
        return centred / deviation.clamp(min=1e-6)
