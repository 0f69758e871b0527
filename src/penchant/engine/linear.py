"""Log-probs of target tokens straight from hidden states: the [N, V] logits never exist as a whole.

Shapes: N target tokens, D hidden size, V vocabulary; n rows of one chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

CHUNK_ELEMENTS = 1 << 24
"""Logits computed at a time (64 MiB in float32): enough rows for fast products with a large vocabulary's weights."""

KEPT_ELEMENTS = 1 << 27
"""Logits kept for the backward where there are no more than these (512 MiB in float32); else they are recomputed."""

_PASS_ELEMENTS = 1 << 18
"""Of a chunk, what passes from the product to its exponentials at a time: as much as a core's own cache holds."""


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


def chunk_rows(vocabulary: int) -> int:
    """Tokens whose logits are computed at a time."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def keeps_logits(tokens: int, vocabulary: int, trained: bool, softcap: float | None) -> bool:
    """Whether the backward finds the logits of these tokens where the forward left them."""
    return trained and softcap is None and tokens * vocabulary <= KEPT_ELEMENTS


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, out: Tensor) -> Tensor:
    """[n, V] in the dtype of `out`, written there."""
    if bias is None and out.dtype == hidden.dtype:
        torch.mm(hidden, weight.T, out=out)
    else:
        out.copy_(linear(hidden, weight, bias))
    return out if softcap is None else out.div_(softcap).tanh_().mul_(softcap)


def _exponentials(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets [n], and the sum of each row's exponentials [n]; `logits` becomes the exponentials.

    Each row's are of its logits less their maximum.
    """
    log_probs, totals = torch.empty_like(logits[:, 0]), torch.empty_like(logits[:, 0])
    rows = max(1, _PASS_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        values = logits[part]
        values.sub_(values.amax(1, keepdim=True))
        log_probs[part] = values.gather(1, targets[part, None])[:, 0]
        torch.sum(values.exp_(), 1, out=totals[part])
    return log_probs.sub_(totals.log()), totals


def _logits_gradient(exponentials: Tensor, totals: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """d(upstream . log_probs) / d(logits) = upstream (onehot - softmax); [n, V], in place of the exponentials."""
    exponentials.mul_((-upstream / totals)[:, None])
    exponentials[torch.arange(len(targets), device=targets.device), targets] += upstream
    return exponentials


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
    ) -> Tensor:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        n, vocabulary = len(targets), weight.shape[0]
        trained = needs_weight or needs_bias
        ctx.softcap, ctx.targets, ctx.trained = softcap, targets, trained
        kept = keeps_logits(n, vocabulary, trained, softcap)
        rows = chunk_rows(vocabulary)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        table = torch.empty(n if kept else min(n, rows), vocabulary, dtype=dtype, device=hidden.device)
        log_probs, totals = (torch.empty(n, dtype=dtype, device=hidden.device) for _ in range(2))
        # With a frozen head each row's gradient can be had now, for an upstream of 1, and scaled later.
        unit = torch.empty_like(hidden) if needs_hidden and not trained else None
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            chunk = table[part] if kept else table[: part.stop - part.start]
            _logits(hidden[part], weight, bias, softcap, chunk)
            slope = None if unit is None or softcap is None else 1 - (chunk / softcap) ** 2
            log_probs[part], totals[part] = _exponentials(chunk, targets[part])
            if unit is not None:
                gradient = _logits_gradient(chunk, totals[part], targets[part], torch.ones_like(totals[part]))
                unit[part] = (gradient if slope is None else gradient.mul_(slope)).to(weight.dtype) @ weight
        ctx.exponentials = table if kept else None
        if trained:
            ctx.save_for_backward(hidden, weight, bias, totals)
        elif unit is not None:
            ctx.save_for_backward(unit)
        return log_probs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None]:
        if not ctx.trained:
            (unit,) = ctx.saved_tensors
            return unit * upstream[:, None].to(unit.dtype), None, None, None, None
        hidden, weight, bias, totals = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.empty_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if needs_bias else None
        # The exponentials become the gradient in place: a second backward computes them anew.
        exponentials, ctx.exponentials = ctx.exponentials, None
        n = len(totals)
        rows = n if exponentials is not None else chunk_rows(weight.shape[0])
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            gradient = _chunk_gradient(ctx, part, upstream[part], exponentials).to(weight.dtype)
            if hidden_gradient is not None:
                hidden_gradient[part] = gradient @ weight
            if weight_gradient is not None:
                # The first product writes, the others add to it: no pass over [V, D] to fill it with zeros.
                weight_gradient.addmm_(gradient.T, hidden[part], beta=float(start > 0))
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
        return hidden_gradient, weight_gradient, bias_gradient, None, None


def _chunk_gradient(ctx: Any, part: slice, upstream: Tensor, exponentials: Tensor | None) -> Tensor:
    """[n, V] the gradient of a chunk's raw logits, from its kept exponentials or computed again."""
    hidden, weight, bias, totals = ctx.saved_tensors
    targets, softcap = ctx.targets[part], ctx.softcap
    if exponentials is not None:
        return _logits_gradient(exponentials[part], totals[part], targets, upstream)
    chunk = torch.empty(len(targets), weight.shape[0], dtype=totals.dtype, device=totals.device)
    _logits(hidden[part], weight, bias, softcap, chunk)
    slope = None if softcap is None else 1 - (chunk / softcap) ** 2
    _exponentials(chunk, targets)
    gradient = _logits_gradient(chunk, totals[part], targets, upstream)
    return gradient if slope is None else gradient.mul_(slope)
