"""Log-probs of target tokens straight from hidden states, without their [N, V] logits where these are too many to keep.

An embedding that shares the head's weight gets one gradient [V, D] for both, not two that are added.
Shapes: N target tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from penchant.engine.kernels.output_layer import LowRank, OutputLayer, block_rule, passes


@dataclass
class SharedGradient:
    """The weight's gradient of one backward, between the head that makes it and the embedding that adds to it.

    The head's backward runs before the embedding's, and its gradient waits to be accumulated until that is done. So the
    embedding adds its rows to it: no second table is made, filled with zeros and added.
    """

    gradient: Tensor | None = None


def is_tied(embedding: nn.Module, head: nn.Module) -> bool:
    """Whether the two share a trained weight, and the embedding does nothing but look its rows up."""
    if type(embedding) is not nn.Embedding or embedding.weight is not head.weight:
        return False
    plain = embedding.max_norm is None and not embedding.sparse and not embedding.scale_grad_by_freq
    return plain and embedding.weight.requires_grad


def embed(ids: Tensor, weight: Tensor, padding: int | None, shared: SharedGradient) -> Tensor:
    """Embeddings [..., D] of ids: rows of the weight.

    Args:
        ids: [...] int64.
        weight: [V, D].
        padding: an id whose row is not trained.
        shared: the object that the head gets too.
    """
    rows: Tensor = _Embed.apply(ids, weight, padding, shared)
    return rows


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None, shared: SharedGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.like, ctx.padding, ctx.shared = (weight.shape, weight.dtype), padding, shared
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor | None, None, None]:
        (ids,) = ctx.saved_tensors
        shape, dtype = ctx.like
        total, ctx.shared.gradient = ctx.shared.gradient, None
        if ctx.padding is not None:
            upstream = upstream.masked_fill((ids == ctx.padding)[..., None], 0.0)
        is_new = total is None
        if total is None:
            total = upstream.new_zeros(shape, dtype=dtype)
        rows, gradients = ids.flatten(), upstream.flatten(0, -2).to(dtype)
        if total.is_cuda:  # There `index_add_` adds in no fixed order.
            total.index_put_((rows,), gradients, accumulate=True)
        else:
            total.index_add_(0, rows, gradients)
        return None, total if is_new else None, None, None


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    softcap: float | None = None,
    shared: SharedGradient | None = None,
    adapter: LowRank | None = None,
) -> Tensor:
    """Log-softmax of ``hidden @ weight.T + bias``, with an adapter ``+ low @ up.T``, at the targets.

    Args:
        hidden: [N, D], in the dtype of the matrix product.
        weight: [V, D].
        bias: [V] or None.
        targets: [N] int64.
        softcap: logits become ``softcap * tanh(logits / softcap)`` (Gemma 2).
        shared: holds the weight's gradient after the backward, for an embedding of the same weight to add to.
        adapter: its low [N, r] in the dtype of `hidden`, its up [V, r].

    Returns:
        [N] log-probs, nats, in float32 or better.
    """
    n = len(targets)
    padding = -n % row_multiple(hidden.device, hidden.dtype)
    low, up = (None, None) if adapter is None else adapter
    if padding:
        hidden, targets = pad(hidden, (0, 0, 0, padding)), pad(targets, (0, padding))
        low = None if low is None else pad(low, (0, 0, 0, padding))
    log_probs: Tensor = _LinearLogProbs.apply(
        hidden, weight, bias, low, up, targets, softcap, torch.is_grad_enabled(), shared
    )
    return log_probs[:n]


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """The number of rows whose multiples make fast matrix products on this device and in this dtype.

    In half precision on the CPU each new shape costs milliseconds, for which a program is compiled, and its memory.
    """
    return 128 if device.type == "cpu" and dtype in (torch.bfloat16, torch.float16) else 1


def compute_dtype(like: Tensor) -> torch.dtype:
    """The dtype of a tensor's matrix products, whatever its shape: autocast's where it is on, else its own."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


class _LinearLogProbs(torch.autograd.Function):
    """Logits stay in the dtype of the product; everything after it is in float32, a few rows at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        low: Tensor | None,
        up: Tensor | None,
        targets: Tensor,
        softcap: float | None,
        with_gradients: bool,
        shared: SharedGradient | None,
    ) -> Tensor:
        # Without a graph a trained weight says that it needs a gradient all the same.
        needs_hidden, *needs_layer = (with_gradients and needs_gradient for needs_gradient in ctx.needs_input_grad[:5])
        ctx.softcap, ctx.shared, ctx.layer_trained = softcap, shared, any(needs_layer)
        rule, vocabulary = block_rule(hidden.device, hidden.dtype), len(weight)
        ctx.weight_dtype = weight.dtype
        if ctx.layer_trained and weight.is_cuda:
            weight = weight.to(hidden.dtype)  # Once for both passes; a CPU casts a block while its caches hold it.
        head = OutputLayer(weight, bias, softcap, _low_rank(low, up), rule)
        if ctx.layer_trained:
            keep = rule.blocks_to_keep(len(targets), vocabulary)
            log_probs, normalisers, ctx.kept_logits = head.log_probs(hidden, targets, keep)
            ctx.rule = rule
            ctx.save_for_backward(hidden, weight, bias, low, up, targets, normalisers)
            return log_probs
        if not needs_hidden:
            return head.log_probs(hidden, targets, 0)[0]
        # With a frozen head every row's gradient is computed now, for an upstream of 1, and scaled later.
        unit, all_log_probs = torch.empty_like(hidden), torch.empty_like(targets, dtype=head.sum_dtype(hidden))
        rows = max(1, rule.frozen_elements // vocabulary)
        for x, x_gradient, words, rows_log_probs in passes(rows, hidden, unit, targets, all_log_probs):
            log_probs, normalisers, block_logits = head.log_probs(x, words, len(rule.slices(len(x), vocabulary)))
            unit_upstream = torch.ones_like(normalisers)
            sums = head.gradients(
                x, words, normalisers, unit_upstream, block_logits, (True, False, False, False, False)
            ).hidden
            assert sums is not None
            x_gradient.copy_(sums)
            rows_log_probs.copy_(log_probs)
        ctx.save_for_backward(unit)
        return all_log_probs

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.layer_trained:
            (unit,) = ctx.saved_tensors
            return unit * upstream[:, None].to(unit.dtype), *(None,) * 8
        hidden, weight, bias, low, up, targets, normalisers = ctx.saved_tensors
        # The logits become their gradient in place: a second backward computes them anew.
        block_logits, ctx.kept_logits = ctx.kept_logits, []
        head = OutputLayer(weight, bias, ctx.softcap, _low_rank(low, up), ctx.rule, ctx.weight_dtype)
        sums = head.gradients(hidden, targets, normalisers, upstream, block_logits, ctx.needs_input_grad[:5])
        gradients = sums.rounded(hidden.dtype)
        if ctx.shared is not None:
            ctx.shared.gradient = gradients.weight
        return *gradients, *(None,) * 4


def _low_rank(low: Tensor | None, up: Tensor | None) -> LowRank | None:
    return None if low is None or up is None else LowRank(low, up)
