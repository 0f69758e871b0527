"""The embedding of a model whose head has the same weight: one gradient [V, D] for both, not two that are added.

The head's backward runs before the embedding's, and its gradient waits to be accumulated until that is done. So the
embedding adds its rows to it: no second table is made, filled with zeros and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


@dataclass
class SharedGradient:
    """The weight's gradient of one backward, between the head that makes it and the embedding that adds to it."""

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
