"""R references as one: mixtures of their log-probs, and the trust region around the first (arXiv 2405.16388).

Shapes: every table is [R, G, K, K], a value for each reference, group, and pair of candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from penchant.objectives.base import Groups
from penchant.objectives.pairs import mean_log_probs


def pair_sides(
    policy: Tensor, reference: Tensor, groups: Groups, normalize: Literal["sum", "mean"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The policy's log-probs [G, K], and the references' of each pair's first and second candidate.

    They are 0 (with no gradient) where there is no candidate, so that no pair of candidates is NaN.

    Args:
        normalize: summed log-probs, or those per token (of the policy's tokens).
    """
    if normalize == "sum":
        policy_log_probs, tables = torch.where(groups.mask, policy, 0.0), torch.where(groups.mask, reference, 0.0)
    else:
        policy_log_probs, tables = mean_log_probs(policy, groups), mean_log_probs(reference, groups)
    shape = (len(tables), *groups.better.shape)
    return policy_log_probs, tables[:, :, :, None].expand(shape), tables[:, :, None, :].expand(shape)


def harmonic(tables: Tensor, weights: Tensor) -> Tensor:
    """Harmonic mixture [G, K, K] ``-logsumexp_k(log a_k - l_k)``; a reference of weight 0 has no part in it."""
    return -torch.logsumexp(weights.log() - tables, 0)


def geometric(tables: Tensor, weights: Tensor) -> Tensor:
    """Geometric mixture [G, K, K] ``sum_k a_k l_k``."""
    return (weights * tables).sum(0)


MIXTURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "harmonic": harmonic,
    "geometric": geometric,
    # Its loss is mixed, not its references; its reward is the mean over references.
    "multi_loss": geometric,
}


def clip(
    chosen: Tensor, rejected: Tensor, largest: float, radius: Literal["adaptive", "fixed"]
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """CTRO: every reference within a share e_y of the first, ``(1 + e_y) l_1 <= l_k <= (1 - e_y) l_1``.

    Args:
        largest: e_max; ``adaptive`` shares are ``e_max |b_y| / (|b_w| + |b_l|)``, b the mean over references.

    Returns:
        both sides [R, G, K, K], and bool, whether a value was clipped on either.
    """
    sizes = chosen.mean(0).abs(), rejected.mean(0).abs()
    total_size = (sizes[0] + sizes[1]).clamp(min=1e-30)
    sides = []
    for tables, size in zip((chosen, rejected), sizes, strict=True):
        share = largest * size / total_size if radius == "adaptive" else torch.full_like(size, largest)
        ends = (1 - share) * tables[0], (1 + share) * tables[0]
        bounded = tables.clamp(torch.minimum(*ends), torch.maximum(*ends))
        sides.append(torch.cat([tables[:1], bounded[1:]]))
    return (sides[0], sides[1]), (sides[0] != chosen) | (sides[1] != rejected)
