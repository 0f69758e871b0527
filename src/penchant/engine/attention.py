"""Tree attention: each candidate's tokens see their own branch and their prompt, nothing else of the row.

Registered through transformers' attention interface, so no model's code is touched. The plan of the row reaches each
layer as the keyword argument `tree` of the model's forward, never through a global: gradient checkpointing runs layers
again later, and two models may be alive at once.

Shapes: H heads, D head size, T tokens of the row, n tokens of one tile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from penchant.engine.device import has_keyword, warn_missing
from penchant.engine.kernels.cpu_attention import has_cpu_operators, tiled_attention
from penchant.engine.kernels.linear_log_probs import compute_dtype
from penchant.engine.kernels.shared_prompts import (
    Segments,
    has_shared_prompt_kernel,
    is_flash_size,
    shared_prompt_attention,
)
from penchant.engine.tree_plan import GatheredSegments, Span, Tiling, TreePlan

TREE = "penchant_tree"

# What transformers passes along to every attention function without it changing causal attention over the row.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"}


Attend = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""Attention of one tile: queries, keys, values [1, H, n, D], and the tile's number."""


class UnsupportedAttention(Exception):
    """A layer needs an attention feature that the tree does not support; the model is then run padded."""


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: TreePlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **further_arguments: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row, by the contract of transformers' attention interface.

    Args:
        query: [1, H, T, D]; `key` and `value`: [1, H_kv, T, D].
        tree: the row's plan.
        sliding_window, softcap, s_aux: this layer's window (positions), logit soft-cap, and sinks [H].

    Returns:
        attention output [1, T, H, D], and None in place of attention weights.

    Raises:
        UnsupportedAttention: the layer passes an argument that would change the result and is unknown here.
    """
    unknown = sorted(
        name for name, argument in further_arguments.items() if argument is not None and name not in _HARMLESS
    )
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    if tree is None:
        raise UnsupportedAttention("its layers do not pass the tree on to attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("its attention is not causal")
    if attention_mask is not None:
        raise UnsupportedAttention("it makes an attention mask of its own")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layout = tree.prompts_first
    if layout is not None:
        if softcap is None and s_aux is None and not tree.narrows(sliding_window):
            q, k, v = (x.squeeze(0).transpose(0, 1).to(compute_dtype(x)) for x in (query, key, value))
            if has_shared_prompt_kernel(q, v, tree.has_flash):
                segments = Segments(layout.prompts, layout.groups, layout.candidates, layout.tokens, *layout.longest)
                return shared_prompt_attention(q, k, v, segments, scale)[None], None
        # What that kernel lacks is computed on a row that lies group after group.
        query, key, value = (x.index_select(2, layout.inverse_order) for x in (query, key, value))
    out = _group_by_group(query, key, value, tree, sliding_window, scale, softcap, s_aux)
    return (out if layout is None else out.index_select(1, layout.order)), None


def _group_by_group(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreePlan,
    sliding_window: int | None,
    scale: float,
    softcap: float | None,
    s_aux: Tensor | None,
) -> Tensor:
    """Attention output [1, T, H, D] of a row that lies group after group."""
    if softcap is not None or s_aux is not None:
        return _explicit(query, key, value, tree, sliding_window, scale, softcap, s_aux)
    if query.device.type == "cpu" and query.shape[3] == value.shape[3] and has_cpu_operators():
        return _on_cpu(query, key, value, tree, sliding_window, scale)
    # Under autocast rotations and norms return float32, which the fast kernels do not take.
    query, key, value = (x.to(compute_dtype(x)) for x in (query, key, value))
    if tree.segments is not None and is_flash_size(query, value) and _varlen_attn() is not None:
        return _variable_length(query, key, value, tree.segments, sliding_window, scale)
    return _masked(query, key, value, tree, sliding_window, scale)


def _on_cpu(query: Tensor, key: Tensor, value: Tensor, tree: TreePlan, window: int | None, scale: float) -> Tensor:
    # In half precision the kernel's backward takes seven times as long as in float32.
    dtype = torch.promote_types(query.dtype, torch.float32)
    q, k, v = (x.to(dtype) for x in (query, key, value))
    return tiled_attention(q, k, v, tree.tiling(window), scale).to(value.dtype)


def _masked(query: Tensor, key: Tensor, value: Tensor, tree: TreePlan, window: int | None, scale: float) -> Tensor:
    """Fused attention, tile by tile."""
    tiling = tree.tiling(window)
    gqa = query.shape[1] != key.shape[1]

    def attend(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
        causal = tiling.tiles[number].causal
        bias = None if causal else tiling.bias(number, q.dtype)
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal, scale=scale, enable_gqa=gqa)

    return _over_tiles(query, key, value, tiling, attend)


def _explicit(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tree: TreePlan,
    window: int | None,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention written out, for what the fused kernels lack: a soft-cap on the logits (Gemma 2), sinks (gpt-oss)."""
    repeats = query.shape[1] // key.shape[1]
    tiling = tree.tiling(window)

    def attend(q: Tensor, k: Tensor, v: Tensor, number: int) -> Tensor:
        scores = q @ k.transpose(2, 3) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores + tiling.bias(number, scores.dtype)
        if sinks is not None:
            column = sinks.view(1, -1, 1, 1).expand(1, -1, q.shape[2], 1)
            scores = torch.cat([scores, column.to(scores.dtype)], dim=-1)
        return scores.softmax(-1)[..., : k.shape[2]].to(v.dtype) @ v

    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return _over_tiles(query, key, value, tiling, attend)


def _over_tiles(query: Tensor, key: Tensor, value: Tensor, tiling: Tiling, attend: Attend) -> Tensor:
    """Attention output [1, T, H, D] of all tiles. `split` and not slices: its backward is one concatenation."""
    edges = sorted({0, *(edge for t in tiling.tiles for span in (*t.queries, *t.keys, t.outputs) for edge in span)})
    piece_index = {edge: i for i, edge in enumerate(edges)}
    pieces = [x.split([end - start for start, end in pairwise(edges)], 2) for x in (query, key, value)]

    def join(tensors: Sequence[Tensor], spans: Sequence[Span]) -> Tensor:
        joined_pieces = [piece for start, end in spans for piece in tensors[piece_index[start] : piece_index[end]]]
        return joined_pieces[0] if len(joined_pieces) == 1 else torch.cat(joined_pieces, dim=2)

    q, k, v = pieces
    parts = []
    for number, tile in enumerate(tiling.tiles):
        output_length = tile.outputs[1] - tile.outputs[0]
        if not tile.keys:
            parts.append(query.new_zeros(1, query.shape[1], output_length, value.shape[3]))
            continue
        out = attend(join(q, tile.queries), join(k, tile.keys), join(v, tile.keys), number)
        parts.append(out if out.shape[2] == output_length else out[:, :, -output_length:])
    return torch.cat(parts, dim=2).transpose(1, 2)


@cache
def _varlen_attn() -> Callable[..., Any] | None:
    """torch's attention over variable lengths; None, with a warning, where it has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        warn_missing("torch.nn.attention.varlen.varlen_attn", "attention on a GPU goes tile by tile, which is slower")
        return None
    return varlen_attn


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, segments: GatheredSegments, window: int | None, scale: float
) -> Tensor:
    """Flash attention over variable lengths: each candidate's keys are its prompt's and its own, gathered.

    Causal from the bottom right, so a candidate's first query sees the whole prompt. `window_size` counts the keys to
    the left of the query's own. Queries may have more heads than keys: torch 2.11's kernel accepts that,
    later ones need `enable_gqa`.
    """
    kernel = _varlen_attn()
    assert kernel is not None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k.index_select(0, segments.keys), v.index_select(0, segments.keys)
    options: dict[str, object] = {"window_size": (-1 if window is None else window - 1, 0), "scale": scale}
    if has_keyword(kernel, "enable_gqa"):
        options["enable_gqa"] = q.shape[1] != k.shape[1]
    attended = kernel(q.contiguous(), k, v, *segments.ends, *segments.longest, **options)
    return attended[None]
