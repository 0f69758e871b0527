"""Random draws that are the same on every process and after every resume: functions of (seed, step)."""

from __future__ import annotations

import torch
from torch import Tensor


def draw_pairs(better: Tensor, log_weights: Tensor, share: float, seed: int, step: int) -> Tensor:
    """A share of the preferred pairs, without replacement, by their weights.

    Args:
        better: [G, K, K] bool, N of them True.
        log_weights: [N], of the pairs in the order of `better`.
        share: int(share N) pairs are drawn, at least one.

    Returns:
        [G, K, K] bool, the pairs drawn.
    """
    count = min(len(log_weights), max(1, int(share * len(log_weights))))
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    uniform = torch.rand(len(log_weights), generator=generator, dtype=torch.float64)
    # The largest log-weight + Gumbel noise is a draw without replacement, and far outliers do not underflow.
    noisy = log_weights.cpu().double() - torch.log(-torch.log(uniform))
    chosen = torch.zeros(len(log_weights), dtype=torch.bool)
    chosen[noisy.topk(count).indices] = True
    drawn_pairs = torch.zeros_like(better)
    drawn_pairs[better] = chosen.to(better.device)
    return drawn_pairs
