"""Candidates against all that they are preferred to: functions that ranking methods share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus


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
