"""Log-probs of target tokens straight from hidden states: the [N, V] logits never exist as a whole.

Shapes: N target tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

CHUNK_ELEMENTS = 1 << 22
"""Logits computed at a time; bounds the working memory (16 MiB in float32)."""

KEPT_ELEMENTS = 1 << 26
"""Logits kept for the backward when there are no more than these (256 MiB in float32); else they are recomputed."""


def linear_log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, softcap: float | None = None
) -> Tensor:
    """Log-softmax of ``hidden @ weight.T + bias`` at the targets.

    Args:
        hidden: [N, D].
        weight: [V, D], in the dtype of the matrix product.
        bias: [V] or None.
        targets: [N] int64.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).

    Returns:
        [N] log-probs, nats, in float32 or better.
    """
    return _LinearLogProbs.apply(hidden, weight, bias, targets, softcap)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _logits_gradient(
    logits: Tensor, normaliser: Tensor, targets: Tensor, upstream: Tensor, softcap: float | None
) -> Tensor:
    """d(upstream . log_probs) / d(raw logits) = upstream (onehot - softmax), through the soft-cap; [n, V]."""
    gradient = torch.exp(logits - normaliser[:, None]).mul_(-upstream[:, None])
    gradient[torch.arange(len(targets), device=targets.device), targets] += upstream
    return gradient if softcap is None else gradient * (1 - (logits / softcap) ** 2)


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        frozen_head = needs_hidden and not (needs_weight or needs_bias)
        keep = (needs_weight or needs_bias) and len(targets) * weight.shape[0] <= KEPT_ELEMENTS
        log_probs, normalisers, kept = [], [], []
        for h, y in zip(hidden.split(rows), targets.split(rows), strict=True):
            logits = _logits(h, weight, bias, softcap)
            normaliser = logits.logsumexp(-1)
            log_probs.append(logits.gather(-1, y[:, None])[:, 0] - normaliser)
            normalisers.append(normaliser)
            if keep:
                kept.append(logits)
            elif frozen_head:
                # Each row's gradient is its own, so it can be had now, for an upstream of 1, and scaled later.
                unit = _logits_gradient(logits, normaliser, y, torch.ones_like(normaliser), softcap)
                kept.append(unit.to(weight.dtype) @ weight)
        ctx.rows, ctx.softcap, ctx.frozen_head, ctx.kept = rows, softcap, frozen_head, kept
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(normalisers))
        return torch.cat(log_probs)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        if ctx.frozen_head:
            unit = torch.cat(ctx.kept)
            return (unit * upstream[:, None]).to(hidden.dtype), None, None, None, None
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if needs_bias else None
        for chunk, start in enumerate(range(0, len(targets), ctx.rows)):
            part = slice(start, start + ctx.rows)
            h = hidden[part]
            logits = ctx.kept[chunk] if ctx.kept else _logits(h, weight, bias, ctx.softcap)
            gradient = _logits_gradient(logits, normalisers[part], targets[part], upstream[part], ctx.softcap)
            gradient = gradient.to(weight.dtype)
            if hidden_gradient is not None:
                hidden_gradient[part] = gradient @ weight
            if weight_gradient is not None:
                weight_gradient.addmm_(gradient.T, h)
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
        return hidden_gradient, weight_gradient, bias_gradient, None, None
