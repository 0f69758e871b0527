"""Attention of a row that holds all prompts first and then all candidates, in three calls of a variable-length kernel.

Prompts attend to themselves, all candidates of a group to their prompt, every candidate to itself. The last two are
merged by their log-sum-exps, ``o = o_a exp(l_a - l) + o_b exp(l_b - l)`` with ``l = log(exp l_a + exp l_b)``. A flash
backward needs of its own softmax only the output and the log-sum-exp: with the merged ones it gives each call's part
of the exact gradient. Keys and values are plain slices of the row, nothing is gathered, and each sum has one order.

Both passes are operators of torch, which a compiled layer takes as they are. On the CPU they are written out.

Shapes: T tokens of the row, P of them of prompts, H heads, H_kv key heads, D head size, G groups, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from penchant.engine.device import OperatorCall, has_operators
from penchant.engine.kernels import compiled

FLASH_CALLS = (
    OperatorCall(
        "_flash_attention_forward",
        "query key value cum_seq_q cum_seq_k max_q max_k dropout_p is_causal return_debug_mask scale",
    ),
    OperatorCall(
        "_flash_attention_backward",
        "grad_out query key value out logsumexp cum_seq_q cum_seq_k max_q max_k dropout_p is_causal rng_state unused "
        "scale",
    ),
)


class Segments(NamedTuple):
    """Where prompts and candidates begin and end in the row.

    Attributes:
        prompts: [G + 1] int32, cumulative tokens of prompts.
        groups: [G + 1] int32, cumulative tokens of all candidates of a group, from the first candidate on.
        candidates: [C + 1] int32, cumulative tokens of candidates.
        tokens: P, the tokens of all prompts.
        longest_prompt, longest_group, longest_candidate: tokens.
    """

    prompts: Tensor
    groups: Tensor
    candidates: Tensor
    tokens: int
    longest_prompt: int
    longest_group: int
    longest_candidate: int


def shared_prompt_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float) -> Tensor:
    """Attention output [T, H, D].

    Args:
        q: [T, H, D]; `k` and `v`: [T, H_kv, D]; on a GPU in half precision.
        scale: factor of the scores.
    """
    out: Tensor = _SharedPromptAttention.apply(q, k, v, *segments, scale)
    return out


def has_shared_prompt_kernel(q: Tensor, v: Tensor, has_flash: bool) -> bool:
    """Whether `shared_prompt_attention` takes queries [T, H, D] and values [T, H_kv, D] of these dtypes and sizes.

    Args:
        has_flash: whether their device has torch's flash attention; on the CPU nothing needs it.
    """
    return (has_flash and is_flash_size(q, v)) if q.is_cuda else q.shape[-1] == v.shape[-1]


def has_flash_operators() -> bool:
    """Whether torch has the flash attention that a GPU computes `shared_prompt_attention` with."""
    return has_operators(
        FLASH_CALLS,
        "attention on a GPU takes keys and values gathered for every candidate, which takes more time and memory",
    )


def is_flash_size(q: Tensor, v: Tensor) -> bool:
    """Whether torch's flash attention takes queries and values of these dtypes and sizes of a head."""
    size = q.shape[-1]
    return q.dtype in (torch.bfloat16, torch.float16) and v.shape[-1] == size and size % 8 == 0 and size <= 256


class _SharedPromptAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> Tensor:
        *segments, scale = arguments
        out, prompt_sums, candidate_sums = torch.ops.penchant.shared_prompts(q, k, v, *segments, scale)
        ctx.save_for_backward(q, k, v, out, prompt_sums, candidate_sums, *segments[:3])
        ctx.sizes, ctx.scale = segments[3:], scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.ops.penchant.shared_prompts_backward(
            upstream.contiguous(), *ctx.saved_tensors, *ctx.sizes, ctx.scale
        )
        return *gradients, *(None,) * 8


class _AttentionCall(NamedTuple):
    """One call of a variable-length kernel: rows that ask, rows that are seen, segments, and whether causal."""

    rows: slice
    keys: slice
    ends: tuple[Tensor, Tensor]
    longest: tuple[int, int]
    causal: bool


def _attention_calls(segments: Segments) -> tuple[_AttentionCall, _AttentionCall, _AttentionCall]:
    """Prompts to themselves, candidates to their prompt, candidates to themselves."""
    s, of_prompts, of_candidates = segments, slice(0, segments.tokens), slice(segments.tokens, None)
    return (
        _AttentionCall(of_prompts, of_prompts, (s.prompts, s.prompts), (s.longest_prompt, s.longest_prompt), True),
        _AttentionCall(of_candidates, of_prompts, (s.groups, s.prompts), (s.longest_group, s.longest_prompt), False),
        _AttentionCall(
            of_candidates,
            of_candidates,
            (s.candidates, s.candidates),
            (s.longest_candidate, s.longest_candidate),
            True,
        ),
    )


class _Flash:
    """The variable-length kernels of torch's flash attention."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, call: _AttentionCall, scale: float) -> tuple[Tensor, Tensor]:
        """Output [N, H, D] and log-sum-exps [H, N] of a call's N rows."""
        out, sums, *_ = torch.ops.aten._flash_attention_forward(
            query=q[call.rows], key=k[call.keys], value=v[call.keys], return_debug_mask=False, **_options(call, scale)
        )
        return out, sums

    @staticmethod
    def backward(
        upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, call: _AttentionCall, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients by a call's queries, keys and values, with the output and log-sum-exps of the whole softmax."""
        # Without dropout the kernel reads no random numbers.
        state, unused = (torch.empty(n, dtype=torch.uint64, device=q.device) for n in (2, 0))
        with _in_fixed_order():
            gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
                grad_out=upstream[call.rows],
                query=q[call.rows],
                key=k[call.keys],
                value=v[call.keys],
                out=out[call.rows],
                logsumexp=sums,
                rng_state=state,
                unused=unused,
                **_options(call, scale),
            )
        return gradients


def _options(call: _AttentionCall, scale: float) -> dict[str, Any]:
    """The arguments that both operators of flash attention take."""
    (cum_seq_q, cum_seq_k), (max_q, max_k) = call.ends, call.longest
    return {
        "cum_seq_q": cum_seq_q,
        "cum_seq_k": cum_seq_k,
        "max_q": max_q,
        "max_k": max_k,
        "dropout_p": 0.0,
        "is_causal": call.causal,
        "scale": scale,
    }


@contextmanager
def _in_fixed_order() -> Iterator[None]:
    """Kernels called inside the context add up in a fixed order, so that two runs have the same bits."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # Every element is written; filling costs a launch.
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        settings.fill_uninitialized_memory = fills


class _EagerAttention:
    """The same, segment by segment in the dtype of the inputs, float32 at least for sums."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, call: _AttentionCall, scale: float) -> tuple[Tensor, Tensor]:
        rows, keys, values = q[call.rows], k[call.keys], v[call.keys]
        out = torch.zeros_like(rows)
        sums = rows.new_full((rows.shape[1], len(rows)), -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
        for queries, key_rows in _segments(call):
            scores = _scores(rows[queries], keys[key_rows], call.causal, scale)
            sums[:, queries] = scores.logsumexp(-1)
            shares = (scores - sums[:, queries, None]).exp()
            out[queries] = (shares @ _by_head(values[key_rows], rows).to(shares.dtype)).transpose(0, 1).to(out.dtype)
        return out, sums

    @staticmethod
    def backward(
        upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, call: _AttentionCall, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, keys, values, of_rows, outputs = (
            q[call.rows],
            k[call.keys],
            v[call.keys],
            upstream[call.rows],
            out[call.rows],
        )
        gradients = torch.zeros_like(rows), torch.zeros_like(keys), torch.zeros_like(values)
        for queries, key_rows in _segments(call):
            shares = (_scores(rows[queries], keys[key_rows], call.causal, scale) - sums[:, queries, None]).exp()
            dy, y = (x[queries].transpose(0, 1).to(shares.dtype) for x in (of_rows, outputs))
            by_share = dy @ _by_head(values[key_rows], rows).transpose(1, 2).to(shares.dtype)
            by_score = shares * (by_share - (dy * y).sum(-1, keepdim=True)) * scale
            by_key = by_score.transpose(1, 2) @ rows[queries].transpose(0, 1).to(shares.dtype)
            parts = by_score @ _by_head(keys[key_rows], rows).to(shares.dtype), by_key, shares.transpose(1, 2) @ dy
            for gradient, index, part in zip(gradients, (queries, key_rows, key_rows), parts, strict=True):
                heads = part.unflatten(0, (gradient.shape[1], -1)).sum(1)  # query heads that share a key head
                gradient[index] = heads.transpose(0, 1).to(gradient.dtype)
        return gradients


def _segments(call: _AttentionCall) -> list[tuple[slice, slice]]:
    """The queries and the keys of every segment of a call; not of those without keys or queries."""
    queries, keys = ([slice(*pair) for pair in pairwise(ends.tolist())] for ends in call.ends)
    return [(q, k) for q, k in zip(queries, keys, strict=True) if q.stop > q.start and k.stop > k.start]


def _by_head(keys: Tensor, queries: Tensor) -> Tensor:
    """Keys [n, H_kv, D] as [H, n, D], a row for every head of the queries."""
    return keys.transpose(0, 1).repeat_interleave(queries.shape[1] // keys.shape[1], 0)


def _scores(queries: Tensor, keys: Tensor, causal: bool, scale: float) -> Tensor:
    """Scores [H, queries, keys]; -inf where a query does not see a key."""
    dtype = torch.promote_types(queries.dtype, torch.float32)
    scores = queries.transpose(0, 1).to(dtype) @ _by_head(keys, queries).transpose(1, 2).to(dtype) * scale
    if not causal:
        return scores
    n, m = scores.shape[1:]
    return scores.masked_fill(torch.arange(m) > torch.arange(n)[:, None] + m - n, -torch.inf)


Kernel = type[_Flash] | type[_EagerAttention]


def forward(
    kernel: Kernel, q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [T, H, D], and log-sum-exps of prompts [H, P] and of candidates [H, T - P]."""
    (out, prompt_sums), to_prompt, to_itself = (
        kernel.forward(q, k, v, call, scale) for call in _attention_calls(segments)
    )
    merged_output, candidate_sums = compiled.merge_attention(out, *to_prompt, *to_itself)
    # A compiled layer counts on the layout that `_shapes` tells it.
    return merged_output.contiguous(), prompt_sums, candidate_sums.contiguous()


def backward(
    kernel: Kernel, upstream: Tensor, saved: Sequence[Tensor], segments: Segments, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by q, k and v; `saved` are these, and what `forward` returned."""
    q, k, v, out, prompt_sums, candidate_sums = saved
    sums = (prompt_sums, candidate_sums, candidate_sums)
    parts = (
        kernel.backward(upstream, q, k, v, out, of_rows, call, scale)
        for of_rows, call in zip(sums, _attention_calls(segments), strict=True)
    )
    dq, dk, dv = compiled.merge_attention_gradients(*chain.from_iterable(parts))
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


_LIBRARY = torch.library.Library("penchant", "DEF")
_SEGMENTS = "Tensor prompts, Tensor groups, Tensor candidates, SymInt tokens, SymInt p, SymInt g, SymInt c, float scale"
_LIBRARY.define(f"shared_prompts(Tensor q, Tensor k, Tensor v, {_SEGMENTS}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    "shared_prompts_backward(Tensor upstream, Tensor q, Tensor k, Tensor v, Tensor out, Tensor prompt_sums, "
    f"Tensor candidate_sums, {_SEGMENTS}) -> (Tensor, Tensor, Tensor)"
)
for _device, _kernel in (("CPU", _EagerAttention), ("CUDA", _Flash)):
    _LIBRARY.impl(
        "shared_prompts",
        lambda q, k, v, *arguments, kernel=_kernel: forward(kernel, q, k, v, Segments(*arguments[:-1]), arguments[-1]),
        _device,
    )
    _LIBRARY.impl(
        "shared_prompts_backward",
        lambda upstream, *arguments, kernel=_kernel: backward(
            kernel, upstream, arguments[:6], Segments(*arguments[6:-1]), arguments[-1]
        ),
        _device,
    )


@torch.library.register_fake("penchant::shared_prompts")  # type: ignore[untyped-decorator]
def _shapes(q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    tokens, dtype = arguments[3], torch.promote_types(q.dtype, torch.float32)
    sums = (q.new_empty((q.shape[1], n), dtype=dtype) for n in (tokens, q.shape[0] - tokens))
    return (q.new_empty(q.shape), *sums)  # type: ignore[return-value]


@torch.library.register_fake("penchant::shared_prompts_backward")  # type: ignore[untyped-decorator]
def _gradient_shapes(upstream: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v))
