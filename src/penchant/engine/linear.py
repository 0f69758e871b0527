"""Log-probs of target tokens straight from hidden states, their [N, V] logits in chunks.

The logits exist as a whole only where they are few enough to be kept for the backward.

Shapes: N target tokens, D hidden size, V vocabulary; n rows of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from penchant.engine.tied import Shared

CHUNK_ELEMENTS = 1 << 24
"""Logits computed at a time (64 MiB in float32): rows enough for fast products with a large vocabulary's weights."""

KEPT_ELEMENTS = 1 << 27
"""Logits kept for the backward where there are no more than these (512 MiB in float32); else they are recomputed."""

_PASS_ELEMENTS = 1 << 18
"""Of these, exponentials are taken at a time: as many as a core's own cache holds."""


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    softcap: float | None = None,
    shared: Shared | None = None,
) -> Tensor:
    """Log-softmax of ``hidden @ weight.T + bias`` at the targets.

    Args:
        hidden: [N, D], in the dtype of the matrix product.
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        shared: where the backward leaves the weight's gradient, for an embedding of the same weight to add to.

    Returns:
        [N] log-probs, nats, in float32 or better.
    """
    n = len(targets)
    missing = -n % row_multiple(hidden.device, hidden.dtype)
    if missing:
        hidden, targets = pad(hidden, (0, 0, 0, missing)), pad(targets, (0, missing))
    log_probs: Tensor = _LinearLogProbs.apply(hidden, weight, bias, targets, softcap, torch.is_grad_enabled(), shared)
    return log_probs[:n]


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """Products on this device and in this dtype are best of a multiple of so many rows.

    In half precision on the CPU each new shape costs milliseconds, for which a program is compiled, and its memory.
    """
    return 128 if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else 1


def compute_dtype(like: Tensor) -> torch.dtype:
    """The matrix product's dtype: autocast's where it is on, else the tensor's own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


def chunk_rows(vocabulary: int) -> int:
    """Tokens whose logits are computed at a time."""
    return max(1, CHUNK_ELEMENTS // vocabulary)


def keeps_logits(tokens: int, vocabulary: int, trained: bool) -> bool:
    """Whether the backward finds the logits of these tokens where the forward left them."""
    return trained and tokens * vocabulary <= KEPT_ELEMENTS


class _LinearLogProbs(torch.autograd.Function):
    """Logits stay in the dtype of the product; everything after it is in float32, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        graded: bool,
        shared: Shared | None,
    ) -> Tensor:
        # Without a graph a trained weight says that it needs a gradient all the same.
        needs_hidden, needs_weight, needs_bias = (graded and needed for needed in ctx.needs_input_grad[:3])
        n, vocabulary = len(targets), weight.shape[0]
        ctx.shared, ctx.dtype = shared, weight.dtype
        weight = weight.to(hidden.dtype)
        bias = None if bias is None else bias.to(hidden.dtype)
        ctx.softcap, ctx.trained = softcap, needs_weight or needs_bias
        kept = keeps_logits(n, vocabulary, ctx.trained)
        rows = n if kept else min(n, chunk_rows(vocabulary))
        table = hidden.new_empty(rows, vocabulary)
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        log_probs, normalisers = (hidden.new_empty(n, dtype=dtype) for _ in range(2))
        # With a frozen head each row's gradient can be had now, for an upstream of 1, and scaled later.
        unit = torch.empty_like(hidden) if needs_hidden and not ctx.trained else None
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits = _product(hidden[part], weight, bias, table[: part.stop - start])
            _normalise(logits, targets[part], softcap, log_probs[part], normalisers[part])
            if unit is not None:
                ones = torch.ones_like(normalisers[part])
                torch.mm(_gradient(logits, normalisers[part], targets[part], ones, softcap), weight, out=unit[part])
        ctx.logits = table if kept else None
        if ctx.trained:
            ctx.save_for_backward(hidden, weight, bias, targets, normalisers)
        elif unit is not None:
            ctx.save_for_backward(unit)
        return log_probs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.trained:
            (unit,) = ctx.saved_tensors
            return unit * upstream[:, None].to(unit.dtype), *(None,) * 6
        hidden, weight, bias, targets, normalisers = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        hidden_gradient = torch.empty_like(hidden) if needs_hidden else None
        weight_gradient = torch.empty_like(weight) if needs_weight else None
        bias_gradient = torch.zeros_like(bias) if needs_bias else None
        # The logits become their gradient in place: a second backward computes them anew.
        kept, ctx.logits = ctx.logits, None
        n = len(targets)
        rows = n if kept is not None else min(n, chunk_rows(weight.shape[0]))
        table = kept if kept is not None else hidden.new_empty(rows, weight.shape[0])
        for start in range(0, n, rows):
            part = slice(start, min(start + rows, n))
            logits = kept if kept is not None else _product(hidden[part], weight, bias, table[: part.stop - start])
            gradient = _gradient(logits, normalisers[part], targets[part], upstream[part], ctx.softcap)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[part])
            if weight_gradient is not None:
                # The first product writes, the others add to it: no pass over [V, D] to fill it with zeros.
                weight_gradient.addmm_(gradient.T, hidden[part], beta=float(start > 0))
            if bias_gradient is not None:
                bias_gradient += gradient.sum(0)
        if weight_gradient is not None:
            weight_gradient = weight_gradient.to(ctx.dtype)
            if ctx.shared is not None:
                ctx.shared.gradient = weight_gradient
        return hidden_gradient, weight_gradient, bias_gradient, *(None,) * 4


def _product(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """[n, V] raw logits, in `out`."""
    torch.mm(hidden, weight.T, out=out)
    return out if bias is None else out.add_(bias)


def _passes(logits: Tensor) -> Iterator[slice]:
    """Rows to be worked on together; on a GPU all of them."""
    rows = max(1, _PASS_ELEMENTS // logits.shape[1]) if logits.device.type == "cpu" else len(logits)
    for start in range(0, len(logits), rows):
        yield slice(start, start + rows)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    """In float32 or better; the very tensor where there is nothing to do."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return values if softcap is None else torch.tanh(values / softcap) * softcap


def _normalise(logits: Tensor, targets: Tensor, softcap: float | None, log_probs: Tensor, normalisers: Tensor) -> None:
    """Write the targets' log-probs [n] and each row's log-sum-exp [n]."""
    for part in _passes(logits):
        values = _capped(logits[part], softcap)
        top = values.amax(1)
        normalisers[part] = (values - top[:, None]).exp_().sum(1).log_().add_(top)
        log_probs[part] = values.gather(1, targets[part, None])[:, 0] - normalisers[part]


def _gradient(logits: Tensor, normalisers: Tensor, targets: Tensor, upstream: Tensor, softcap: float | None) -> Tensor:
    """d(upstream . log_probs) / d(raw logits) = upstream (onehot - softmax), through the soft-cap; in their place."""
    for part in _passes(logits):
        values = _capped(logits[part], softcap)
        in_place = softcap is None and values.dtype == logits.dtype
        gradient = torch.sub(values, normalisers[part, None], out=values if in_place else None)
        gradient.exp_().mul_(-upstream[part, None])
        gradient.scatter_add_(1, targets[part, None], upstream[part, None])
        if softcap is not None:
            gradient.mul_(1 - (values / softcap) ** 2)
        if not in_place:
            logits[part] = gradient
    return logits
