"""Weights of R references in multi-reference DPO (arXiv 2405.16388 and 2512.10040).

m_k is reference k's length-normalised margin of a pair: ``l_k(y_w)/n_w - l_k(y_l)/n_l``. Shapes: P pairs of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penchant.objectives.base import Groups
from penchant.objectives.pairs import mean_log_probs


def pair_margins(reference: Tensor, groups: Groups) -> Tensor:
    """Margins [R, P] m_k of every preferred pair, nats per token."""
    means = torch.stack([mean_log_probs(table, groups) for table in reference])
    return (means[:, :, :, None] - means[:, :, None, :])[:, groups.better]


def adaptive(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ARWC, MRPO's own: each pair's weights ``|l_k(y_w) - l_k(y_l)| / (sum_j |...| + 1e-6)``.

    A baseline: a confidently *wrong* reference gets the weight. Uniform where no reference tells the two apart.

    Args:
        chosen, rejected: [R, ...] summed log-probs.
    """
    gaps = (chosen - rejected).abs()
    total = gaps.sum(0)
    return torch.where(total > 0, gaps / (total + 1e-6), 1 / len(gaps))


def authors_weights(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Adaptive weights of two references as the harmonic branch of the code of arXiv 2405.16388 applies them.

    With ``alpha = |gap_2| / (|gap_1| + |gap_2| + 1e-6)`` the second reference's weight is alpha and the first's
    1 - alpha; the code multiplies ``1 / ref_1`` by alpha and ``1 / ref_2`` by 1 - alpha, the wrong way round.

    Args:
        chosen, rejected: [2, ...] summed log-probs, the primary first.
    """
    gaps = (chosen - rejected).abs()
    alpha = gaps[1] / (gaps.sum(0) + 1e-6)
    return torch.stack([alpha, 1 - alpha])


PAIRWISE: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"adaptive": adaptive, "authors_weights": authors_weights}
"""Weightings of every pair by its own log-probs: [R, ...] chosen and rejected sums to [R, ...] weights."""


def validation_margin(margins: Tensor) -> Tensor:
    """VDW: ``a_k ~ max(0, mean of m_k)``; uniform where no reference has a positive mean. [R] from [R, P]."""
    return normalise_weights(margins.mean(1).clamp(min=0))


def validation_accuracy(margins: Tensor, above_chance: bool) -> Tensor:
    """VAW: ``a_k ~ A_k``, the share of pairs with m_k > 0; or ``max(0, A_k - 1/2)``. [R] from [R, P]."""
    accuracy = (margins > 0).to(margins.dtype).mean(1)
    return normalise_weights((accuracy - 0.5).clamp(min=0) if above_chance else accuracy)


def best_single(margins: Tensor) -> Tensor:
    """All weight on the reference with the highest VAW accuracy. [R] from [R, P]."""
    return one_hot(int((margins > 0).sum(1).argmax()), margins)


def one_hot(k: int, like: Tensor) -> Tensor:
    """Weights [R] with all weight on reference k."""
    weights = like.new_zeros(like.shape[0])
    weights[k] = 1.0
    return weights


def normalise_weights(weights: Tensor) -> Tensor:
    """Weights [R] divided by their sum; uniform where the sum is 0."""
    total = weights.sum()
    uniform = torch.full_like(weights, 1 / len(weights))
    return torch.where(total > 0, weights / total.clamp(min=1e-30), uniform)
