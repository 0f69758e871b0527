"""Pairs within groups: functions that every pairwise objective shares."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from penchant.objectives.base import Groups, Sum

Average = Literal["groups", "pairs"]


def log_ratios(policy: Tensor, reference: Tensor, groups: Groups) -> Tensor:
    """Log-ratios [G, K] ``Delta = log pi - log ref``, nats; 0 (with no gradient) where there is no candidate."""
    return torch.where(groups.mask, policy - reference, 0.0)


def mean_log_probs(log_probs: Tensor, groups: Groups) -> Tensor:
    """Log-probs per token [G, K], nats; 0 (with no gradient) where there is no candidate."""
    return torch.where(groups.mask, log_probs, 0.0) / groups.tokens.clamp(min=1)


def differences(values: Tensor, better: Tensor) -> Tensor:
    """Differences [G, K, K] of values [G, K]: i less j where i is preferred to j, else 0 (with no gradient)."""
    return torch.where(better, values[:, :, None] - values[:, None, :], 0.0)


def average_pairs(losses: Tensor, groups: Groups, average: Average) -> tuple[Tensor, Tensor]:
    """Mean of each group's pair losses, and the group's weight.

    Args:
        losses: [G, K, K]; read where `groups.better`.
        average: ``groups`` weighs every prompt alike, ``pairs`` every comparison.

    Returns:
        losses [G] and weights [G]; both 0 for a group without a pair.
    """
    pairs = groups.better.sum((1, 2))
    mean = torch.where(groups.better, losses, 0.0).sum((1, 2)) / pairs.clamp(min=1)
    weights = groups.weights * (pairs if average == "pairs" else (pairs > 0))
    return mean, weights


def pair_metrics(rewards: Tensor, policy: Tensor, groups: Groups) -> dict[str, Sum]:
    """The metrics every pairwise method logs, under TRL's names; means over groups of their pairs' means.

    ``rewards/accuracies`` is strict: a tie is not correct; ``rewards/ties`` counts those.

    Args:
        rewards: [G, K] implicit rewards, nats.
        policy: [G, K] log-probs, nats.
    """
    return side_metrics(rewards[:, :, None], rewards[:, None, :], policy, groups)


def side_metrics(chosen: Tensor, rejected: Tensor, policy: Tensor, groups: Groups) -> dict[str, Sum]:
    """`pair_metrics` where a candidate's reward depends on the pair it is in.

    Args:
        chosen, rejected: [G, K, K] (or what broadcasts to it) rewards of each pair's two sides, nats.
        policy: [G, K] log-probs, nats.
    """
    better = groups.better
    pairs = better.sum((1, 2))
    has_pairs = (pairs > 0).to(policy.dtype)

    def over_pairs(values: Tensor) -> Sum:
        means = torch.where(better, values, 0.0).sum((1, 2)) / pairs.clamp(min=1)
        return Sum(means.sum(), has_pairs.sum())

    with torch.no_grad():
        margins = chosen - rejected
        return {
            "rewards/chosen": over_pairs(chosen),
            "rewards/rejected": over_pairs(rejected),
            "rewards/margins": over_pairs(margins),
            "rewards/accuracies": over_pairs((margins > 0).to(policy.dtype)),
            "rewards/ties": over_pairs((margins == 0).to(policy.dtype)),
            "logps/chosen": over_pairs(policy[:, :, None]),
            "logps/rejected": over_pairs(policy[:, None, :]),
        }


def beaten_logsumexp(values: Tensor, better: Tensor) -> Tensor:
    """Logsumexp [G, K] of values [G, K] over those each candidate is preferred to; -inf where there is none."""
    return torch.where(better, values[:, None, :], -torch.inf).logsumexp(2)


def ranking_losses(values: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``-sum_i log [exp v_i / (exp v_i + sum_{j beaten by i} exp v_j)]`` over candidates that beat some.

    Args:
        values: [G, K] log-worths, finite.
        better: [G, K, K].

    Returns:
        losses [G], and [G] bool, whether the group has a comparison at all.
    """
    # A candidate that beats none has a term of softplus(-inf) = 0, and no gradient.
    return softplus(beaten_logsumexp(values, better) - values).sum(1), better.any((1, 2))
