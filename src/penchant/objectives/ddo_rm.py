"""DDO-RM: reward-guided decision distributions (arXiv 2604.11119)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, State, require
from penchant.objectives.decisions import (
    NO_PROBABILITY,
    REWARDS,
    SCALES,
    SCORES,
    add_rewards,
    decision_metrics,
    initial_moments,
)


@dataclass(frozen=True)
class DDORM:
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
        standardize: rewards as they are (``none``); to mean 0 and deviation 1 for each ``prompt``, which makes 1 and -1
            of any two (use it where K > 2); or by the ``running`` mean and deviation of all batches' rewards so far.
        kl: weight of KL(p || p_ref), the reference's distribution by the same score; >= 0.
        beta: scale of the log-ratio score, > 0.
    """

    eta: float = 1.0
    tau: float = 1.0
    detach_target: bool = True
    score: Literal["mean_log_prob", "log_prob", "log_ratio"] = "mean_log_prob"
    rewards: Literal["scores", "wins"] = "scores"
    standardize: Literal["none", "prompt", "running"] = "none"
    kl: float = 0.0
    beta: float = 0.1

    name: ClassVar[str] = "ddo_rm"

    def __post_init__(self) -> None:
        for field in ("eta", "tau", "beta"):
            require(getattr(self, field) > 0, field, getattr(self, field), "a number above 0")
        require(self.kl >= 0, "kl", self.kl, "a number of at least 0")
        require(self.score in SCORES, "score", self.score, f"one of {', '.join(SCORES)}")
        require(self.rewards in REWARDS, "rewards", self.rewards, f"one of {', '.join(REWARDS)}")
        require(self.standardize in SCALES, "standardize", self.standardize, f"one of {', '.join(SCALES)}")

    @property
    def needs(self) -> Needs:
        referenced = int(self.score == "log_ratio" or self.kl > 0)
        return Needs(references=referenced, pairs=self.rewards == "wins", scores=self.rewards == "scores")

    @property
    def coupled(self) -> bool:
        """Whether rewards are scaled by the whole optimizer batch's."""
        return self.standardize == "running"

    def initial_state(self, seed: int) -> State:
        return initial_moments() if self.coupled else {}

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        new_state = add_rewards(*self._rewards(groups), state) if self.coupled else state
        return self.evaluate(policy, reference, groups, new_state), new_state

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        rewards, candidates = self._rewards(groups)
        rewards = SCALES[self.standardize](rewards, candidates, state).to(policy)
        scores = SCORES[self.score](policy, reference, groups, self.beta)
        log_p = torch.where(candidates, scores / self.tau, NO_PROBABILITY).log_softmax(1)
        # Centring the reward would shift every logit alike: q is the same without it.
        log_q = torch.where(candidates, (scores + self.eta * rewards) / self.tau, NO_PROBABILITY).log_softmax(1)
        q = log_q.detach().exp() if self.detach_target else log_q.exp()
        terms = -q * log_p
        if self.kl:
            anchor = SCORES[self.score](reference[0], reference, groups, self.beta)
            log_ref = torch.where(candidates, anchor / self.tau, NO_PROBABILITY).log_softmax(1)
            terms = terms + self.kl * log_p.exp() * (log_p - log_ref)
        # Where one candidate is used p and q are 1, and its term 0.
        losses = torch.where(candidates, terms, 0.0).sum(1)
        several = candidates.sum(1) > 1
        metrics = decision_metrics(log_p, log_q, rewards, scores, groups, candidates & several[:, None])
        return Output(losses, torch.where(several, groups.weights, 0.0), metrics)

    def _rewards(self, groups: Groups) -> tuple[Tensor, Tensor]:
        candidates = groups.mask & (groups.scored if self.rewards == "scores" else groups.mask)
        return REWARDS[self.rewards](groups, candidates), candidates
