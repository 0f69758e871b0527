"""Fused attention over the tiles of a packed row on the CPU, forward and backward, without storing gathered keys.

Autograd would keep each tile's copy of its prompt's keys and values, and its output twice. Here the row's own queries,
keys, values and output are kept, and keys are gathered again in the backward.

Shapes: H heads, D head size, T tokens of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from penchant.engine.device import OperatorCall, has_operators
from penchant.engine.padded import pad_left
from penchant.engine.tree_plan import Span, Tiling, span_length

CPU_CALLS = (
    OperatorCall("_scaled_dot_product_flash_attention_for_cpu", "query key value dropout_p is_causal attn_mask scale"),
    OperatorCall(
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "grad_out query key value out logsumexp dropout_p is_causal attn_mask scale",
    ),
)


def has_cpu_operators() -> bool:
    """Whether torch has the fused attention of `tiled_attention`."""
    return has_operators(CPU_CALLS, "attention on the CPU keeps a copy of the prompts' keys for every tile")


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, tiling: Tiling, scale: float) -> Tensor:
    """Attention output [1, T, H, D] of queries [1, H, T, D], keys and values [1, H or fewer, T, D]; float32 or 64."""
    out: Tensor = _TiledAttention.apply(query, key, value, tiling, scale)
    return out


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tiling: Tiling, scale: float) -> Tensor:
        out = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
        by_head = out.transpose(1, 2)
        normalisers = []
        counted_tile = _counted_tile(query, tiling)
        for number, tile in enumerate(tiling.tiles):
            start, end = tile.outputs
            if not tile.keys:
                out[:, start:end] = 0.0
                continue
            if counted_tile not in (None, number):
                normalisers.append(_skipped_normaliser(query, tiling, number))
                continue
            bias = None if tile.causal else tiling.bias(number, query.dtype)
            q, k, v = _gather(query, tile.queries), _gather(key, tile.keys), _gather(value, tile.keys)
            attended, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query=q, key=k, value=v, dropout_p=0.0, is_causal=tile.causal, attn_mask=bias, scale=scale
            )
            by_head[:, :, start:end] = attended[:, :, start - end :]
            normalisers.append(normaliser)
        ctx.tiling, ctx.scale = tiling, scale
        ctx.save_for_backward(query, key, value, out, *normalisers)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, out, *normalisers = ctx.saved_tensors
        upstream, out = upstream.transpose(1, 2), out.transpose(1, 2)
        totals = tuple(torch.zeros_like(tensor) for tensor in (query, key, value))
        remaining = iter(normalisers)
        counted_tile = _counted_tile(query, ctx.tiling)
        for number, tile in enumerate(ctx.tiling.tiles):
            if not tile.keys:
                continue
            normaliser = next(remaining)
            if counted_tile not in (None, number):
                continue
            start, end = tile.outputs
            bias = None if tile.causal else ctx.tiling.bias(number, query.dtype)
            q, k, v = _gather(query, tile.queries), _gather(key, tile.keys), _gather(value, tile.keys)
            # Outputs that are not the tile's own have no gradient, and are not kept.
            dy, y = (pad_left(tensor[:, :, start:end], q.shape[2], dim=-2) for tensor in (upstream, out))
            gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_out=dy,
                query=q,
                key=k,
                value=v,
                out=y,
                logsumexp=normaliser,
                dropout_p=0.0,
                is_causal=tile.causal,
                attn_mask=bias,
                scale=ctx.scale,
            )
            for total, gradient, spans in zip(totals, gradients, (tile.queries, tile.keys, tile.keys), strict=True):
                parts = gradient.split([b - a for a, b in spans], 2)
                for (a, b), part in zip(spans, parts, strict=True):
                    total[:, :, a:b].add_(part)
        return totals[0], totals[1], totals[2], None, None


def _counted_tile(query: Tensor, tiling: Tiling) -> int | None:
    """Index of the tile that is computed where only memory is counted: the one of most scores; None for all tiles.

    What a tile works with is freed before the next one's, so that the largest stands for all of them.
    """
    if not isinstance(query, FakeTensor):
        return None
    return max(
        (number for number, tile in enumerate(tiling.tiles) if tile.keys),
        key=lambda number: span_length(tiling.tiles[number].queries) * span_length(tiling.tiles[number].keys),
    )


def _skipped_normaliser(query: Tensor, tiling: Tiling, number: int) -> Tensor:
    """An empty tensor [1, queries, H] for a tile's normalisers; makes its bias too, which later layers share."""
    tile = tiling.tiles[number]
    if not tile.causal:
        tiling.bias(number, query.dtype)
    dtype = torch.promote_types(query.dtype, torch.float32)
    return query.new_empty((1, span_length(tile.queries), query.shape[1]), dtype=dtype)


def _gather(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """Tokens of the row in the order of the spans; a view where there is one span."""
    parts = [x[:, :, start:end] for start, end in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
