"""Candidates against all that they are preferred to: what ranking methods share."""

from __future__ import annotations

import torch
from torch import Tensor


def beaten_logsumexp(values: Tensor, better: Tensor) -> Tensor:
    """[G, K] logsumexp of [G, K] values over those each candidate is preferred to; -inf where there is none."""
    beaten = torch.where(better, values[:, None, :], -torch.inf)
    some = better.any(2, keepdim=True)
    # An empty row's logsumexp has a NaN gradient: it is given a finite row, and put back after.
    finite = torch.where(some, beaten, 0.0).logsumexp(2)
    return torch.where(some[:, :, 0], finite, -torch.inf)


def ranking_losses(values: Tensor, better: Tensor) -> tuple[Tensor, Tensor]:
    """``-sum_i log [exp v_i / (exp v_i + sum_{j beaten by i} exp v_j)]`` over candidates that beat some.

    Args:
        values: [G, K] log-worths, finite.
        better: [G, K, K].

    Returns:
        losses [G], and [G] bool, whether the group has a comparison at all.
    """
    ahead = better.any(2)
    beaten = torch.where(ahead, beaten_logsumexp(values, better), values)
    terms = torch.nn.functional.softplus(beaten - values)
    return torch.where(ahead, terms, 0.0).sum(1), ahead.any(1)
