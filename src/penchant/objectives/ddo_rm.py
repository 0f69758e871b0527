"""DDO-RM: reward-guided decision distributions (arXiv 2604.11119)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Needs, Output, State, Sum, require
from penchant.objectives.pairs import differences, log_ratios, mean_log_probs

NO_PROBABILITY = -1e30
"""A logit of no probability whose gradient is 0, not NaN."""


def mean_log_prob(log_probs: Tensor, reference: Tensor, groups: Groups, beta: float) -> Tensor:
    """Log-probs per token [G, K], nats."""
    return mean_log_probs(log_probs, groups)


def log_prob(log_probs: Tensor, reference: Tensor, groups: Groups, beta: float) -> Tensor:
    """Summed log-probs [G, K], nats."""
    return log_probs


def log_ratio(log_probs: Tensor, reference: Tensor, groups: Groups, beta: float) -> Tensor:
    """Log-ratios to the first reference times beta, [G, K]."""
    return beta * log_ratios(log_probs, reference[0], groups)


SCORES: Mapping[str, Callable[[Tensor, Tensor, Groups, float], Tensor]] = {
    "mean_log_prob": mean_log_prob,
    "log_prob": log_prob,
    "log_ratio": log_ratio,
}
"""A policy's scores of candidates, by name; their softmax is the distribution over the candidates."""


@torch.no_grad()
def decision_metrics(
    log_p: Tensor, log_q: Tensor, rewards: Tensor, scores: Tensor, groups: Groups, candidates: Tensor
) -> dict[str, Sum]:
    """Expected rewards, entropies, KL(q || p), top-1 and pair accuracy; means over groups of several candidates.

    Args:
        log_p, log_q: [G, K].
        rewards: [G, K]; read where `candidates`.
        scores: [G, K]; read where `candidates`, and where `groups.better` compares.
        candidates: [G, K] bool, the candidates that the distributions are over.
    """
    p, q = log_p.exp(), log_q.exp()
    has_candidates = candidates.any(1)

    def over_groups(values: Tensor) -> Sum:
        return Sum(torch.where(candidates, values, 0.0).sum(), has_candidates.sum().to(values.dtype))

    best = torch.where(candidates, rewards, -torch.inf)
    top = best.gather(1, torch.where(candidates, scores, NO_PROBABILITY).argmax(1, keepdim=True))[:, 0] == best.amax(1)
    margins = differences(scores, groups.better)
    pairs = groups.better.sum((1, 2))
    right = ((margins > 0).sum((1, 2)) / pairs.clamp(min=1)).to(scores.dtype)
    return {
        "ddo_rm/expected_reward": over_groups(p * rewards),
        "ddo_rm/target_reward": over_groups(q * rewards),
        "ddo_rm/entropy": over_groups(-p * log_p),
        "ddo_rm/target_entropy": over_groups(-q * log_q),
        "ddo_rm/kl": over_groups(q * (log_q - log_p)),
        "ddo_rm/top1": Sum((top & has_candidates).sum().to(scores.dtype), has_candidates.sum().to(scores.dtype)),
        "rewards/accuracies": Sum(right.sum(), (pairs > 0).sum().to(scores.dtype)),
    }


LEAST_DEVIATION = 1e-6
"""Rewards that differ by less count as equal."""


def data_scores(groups: Groups, candidates: Tensor) -> Tensor:
    """The scores [G, K] of the data, or of the run's reward; 0 outside of the candidates (bool)."""
    return torch.where(candidates, groups.scores, 0.0)


def win_shares(groups: Groups, candidates: Tensor) -> Tensor:
    """Win shares [G, K] ``(wins - losses) / (K - 1)`` by the group's preferences, in [-1, 1]; else 0."""
    count = candidates.sum(1, keepdim=True)
    shares = (groups.better.sum(2) - groups.better.sum(1)) / (count - 1).clamp(min=1)
    return torch.where(candidates, shares, 0.0)


REWARDS: Mapping[str, Callable[[Groups, Tensor], Tensor]] = {"scores": data_scores, "wins": win_shares}


def unscaled(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """The rewards [G, K] as they are."""
    return rewards


def by_prompt(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """Rewards [G, K] of mean 0 and deviation 1 among each prompt's candidates; of two candidates always 1 and -1."""
    count = candidates.sum(1, keepdim=True)
    centred = torch.where(candidates, rewards - rewards.sum(1, keepdim=True) / count, 0.0)
    deviation = ((centred**2).sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=LEAST_DEVIATION)


def by_running_moments(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """Rewards [G, K] less the mean and over the deviation of all in the state; unchanged where there are none yet."""
    if not float(state["count"]):
        return rewards
    deviation = (state["squares"] / state["count"]).sqrt().clamp(min=LEAST_DEVIATION)
    return torch.where(candidates, (rewards - state["mean"].to(rewards)) / deviation.to(rewards), 0.0)


SCALES: Mapping[str, Callable[[Tensor, Tensor, State], Tensor]] = {
    "none": unscaled,
    "prompt": by_prompt,
    "running": by_running_moments,
}


def initial_moments() -> State:
    """The moments of no rewards: count, mean, and sum of squared distances from the mean, all 0."""
    return {name: torch.zeros((), dtype=torch.float64) for name in ("count", "mean", "squares")}


def add_rewards(rewards: Tensor, candidates: Tensor, state: State) -> State:
    """The moments with a batch's rewards [G, K] (Chan, Golub and LeVeque 1983, equation 2.1)."""
    values = rewards[candidates].to(state["mean"])
    if not len(values):
        return state
    count = state["count"] + len(values)
    distance = values.mean() - state["mean"]
    squares = ((values - values.mean()) ** 2).sum() + distance**2 * state["count"] * len(values) / count
    return {
        "count": count,
        "mean": state["mean"] + distance * len(values) / count,
        "squares": state["squares"] + squares,
    }


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
