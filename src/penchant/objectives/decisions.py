"""Metrics of two distributions over a prompt's candidates: the policy's p and its target q."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penchant.objectives.base import Groups, Sum
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
