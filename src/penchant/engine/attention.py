"""Tree attention: each candidate's tokens see their own branch and their prompt, nothing else of the row.

Registered through transformers' attention interface, so no model's code is touched. The plan of the row reaches each
layer as the keyword argument `tree` of the model's forward, never through a global: gradient checkpointing runs layers
again later, and two models may be alive at once.

Shapes: H heads, D head size, T tokens of the row, n tokens of one group.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from penchant.data.trees import TreeBatch

TREE = "penchant_tree"

# What transformers passes along to every attention function without it changing causal attention over the row.
_HARMLESS = {"position_ids", "use_cache", "output_attentions", "output_hidden_states", "return_dict", "cache_position"}


class UnsupportedAttention(Exception):
    """A layer asks attention for something the tree does not know; the model is then run padded."""


class TreePlan:
    """Which keys each query of a packed row sees; made once per micro-batch, read by every layer."""

    def __init__(self, batch: TreeBatch) -> None:
        self.device = batch.input_ids.device
        self.branches = batch.branches
        self.lengths = [branch.length for branch in batch.branches]
        self._positions = batch.positions.split(self.lengths)
        self._masks: dict[int | None, list[Tensor | None]] = {}

    def masks(self, window: int | None) -> list[Tensor | None]:
        """For each group, [n, n] bool (query, key), or None where plain causal attention is the same.

        Args:
            window: how many positions a query sees, itself included; counted in positions of the candidate's own
                sequence, not in indices of the row.
        """
        if window not in self._masks:
            self._masks[window] = [self._mask(g, window) for g in range(len(self.branches))]
        return self._masks[window]

    def _mask(self, group: int, window: int | None) -> Tensor | None:
        branch, position = self.branches[group], self._positions[group]
        if len(branch.responses) == 1 and (window is None or window >= branch.length):
            return None
        sizes = torch.tensor([branch.prompt, *branch.responses], device=self.device)
        segment = torch.repeat_interleave(
            torch.arange(len(sizes), device=self.device), sizes, output_size=len(position)
        )
        gap = position[:, None] - position[None, :]
        seen = ((segment[:, None] == segment[None, :]) | (segment[None, :] == 0)) & (gap >= 0)
        return seen if window is None else seen & (gap < window)

    @cached_property
    def segments(self) -> tuple[Tensor, Tensor, Tensor, int, int]:
        """For variable-length kernels, with the prompt's keys and values gathered per candidate.

        Returns:
            gathered [S] int64: the row's index of each key; cumulative query and key lengths [1 + segments] int32;
            longest query and key segment.
        """
        gathered, queries, keys = [], [0], [0]
        start = 0
        for branch in self.branches:
            prompt = torch.arange(start, start + branch.prompt)
            start += branch.prompt
            gathered.append(prompt)
            queries.append(branch.prompt)
            keys.append(branch.prompt)
            for n in branch.responses:
                gathered += [prompt, torch.arange(start, start + n)]
                queries.append(n)
                keys.append(branch.prompt + n)
                start += n
        cumulative = [torch.tensor(x, device=self.device).cumsum(0).to(torch.int32) for x in (queries, keys)]
        return torch.cat(gathered).to(self.device), cumulative[0], cumulative[1], max(queries), max(keys)


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
    **passed: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed row, by the contract of transformers' attention interface.

    Args:
        query: [1, H, T, D]; `key` and `value`: [1, H_kv, T, D].
        tree: the row's plan.
        sliding_window, softcap, s_aux: this layer's window (positions), logit soft-cap, and sinks [H].

    Returns:
        [1, T, H, D], and no weights.

    Raises:
        UnsupportedAttention: the layer passes something that would change the result and is not known here.
    """
    unknown = sorted(name for name, given in passed.items() if given is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    if tree is None:
        raise UnsupportedAttention("its layers do not pass the tree on to attention")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        raise UnsupportedAttention("its attention is not causal")
    if attention_mask is not None:
        raise UnsupportedAttention("it makes an attention mask of its own")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is not None or s_aux is not None:
        return _explicit(query, key, value, tree, sliding_window, scale, softcap, s_aux), None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return _variable_length(query, key, value, tree, sliding_window, scale), None
    return _masked(query, key, value, tree, sliding_window, scale), None


def _masked(query: Tensor, key: Tensor, value: Tensor, tree: TreePlan, window: int | None, scale: float) -> Tensor:
    """One masked attention per group. `split` and not slices: its backward is one concatenation."""
    gqa = query.shape[1] != key.shape[1]
    parts = [
        scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=gqa)
        for q, k, v, mask in zip(
            query.split(tree.lengths, 2),
            key.split(tree.lengths, 2),
            value.split(tree.lengths, 2),
            tree.masks(window),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


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
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    parts = []
    for q, k, v, mask in zip(
        query.split(tree.lengths, 2),
        key.split(tree.lengths, 2),
        value.split(tree.lengths, 2),
        tree.masks(window),
        strict=True,
    ):
        n = q.shape[2]
        seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril() if mask is None else mask
        scores = q @ k.transpose(2, 3) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks.view(1, -1, 1, 1).expand(1, -1, n, 1).to(scores.dtype)], dim=-1)
        parts.append(scores.softmax(-1)[..., :n].to(v.dtype) @ v)
    return torch.cat(parts, dim=2).transpose(1, 2)


@lru_cache(maxsize=1)
def _varlen_attn() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _variable_length(
    query: Tensor, key: Tensor, value: Tensor, tree: TreePlan, window: int | None, scale: float
) -> Tensor:
    """Flash attention over variable lengths: each candidate's keys are its prompt's and its own, gathered.

    Causal from the bottom right, so a candidate's first query sees the whole prompt. `window_size` counts the keys to
    the left of the query's own. The kernel's arguments grew over torch's versions: what one lacks is done around it.
    """
    kernel = _varlen_attn()
    takes = signature(kernel).parameters
    if window is not None and "window_size" not in takes:
        return _masked(query, key, value, tree, window, scale)
    gathered, query_ends, key_ends, longest_query, longest_key = tree.segments
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    k, v = k.index_select(0, gathered), v.index_select(0, gathered)
    given: dict[str, object] = {}
    if "window_size" in takes:
        given["window_size"] = (-1 if window is None else window - 1, 0)
    else:
        given["is_causal"] = True
    if "scale" in takes:
        given["scale"] = scale
    else:
        q = q * (scale * q.shape[-1] ** 0.5)
    if "enable_gqa" in takes:
        given["enable_gqa"] = q.shape[1] != k.shape[1]
    else:
        repeats = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    attended = kernel(q.contiguous(), k, v, query_ends, key_ends, longest_query, longest_key, **given)
    return attended[None]
