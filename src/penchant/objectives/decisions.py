"""Decision distributions over a group's candidates: scores, rewards and their scales, and what is reported of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penchant.objectives.base import Groups, State, Sum
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
