"""Parts of a layer, and the passes over logits, as plain formulas that a GPU computes by one kernel each.

On a GPU a small operation takes longer to launch than to run, and a large one waits for memory; torch.compile makes one
kernel of a formula. The CPU has passes of its own (`fused`, `vocabulary`), which stay within a core's cache.

Shapes: D the last dimension, N tokens, B words of a block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu


def use_compiled(x: Tensor) -> bool:
    """Whether a tensor of any shape is computed by these formulas: one on a GPU is."""
    return x.is_cuda


class _CompiledOnGpu:
    """A formula, compiled at its first call with tensors of a GPU; if that fails it warns and stays uncompiled."""

    def __init__(self, formula: Callable[..., Any]) -> None:
        self._formula = formula
        self._on_gpu: Callable[..., Any] | None = None

    def __call__(self, tensor: Tensor, *arguments: Any) -> Any:
        if not tensor.is_cuda:
            return self._formula(tensor, *arguments)
        # Not before it is needed: the compiler takes seconds to import.
        from torch._dynamo.exc import TorchDynamoException

        if self._on_gpu is None:
            self._on_gpu = torch.compile(self._formula, dynamic=True)
        try:
            return self._on_gpu(tensor, *arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(f"torch.compile does not work here, which costs time: {reason}", stacklevel=2)
            self._on_gpu = self._formula
            return self._formula(tensor, *arguments)


@_CompiledOnGpu
def norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RMS norm ``weight * x * s`` in a dtype, and its scale ``s = 1 / sqrt(mean(x²) + epsilon)`` [..., 1]."""
    scale = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * scale * weight).to(dtype), scale


@_CompiledOnGpu
def norm_backward(x: Tensor, weight: Tensor, scale: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `norm` by x [..., D] and weight [D]."""
    upstream, unit = upstream.to(x.dtype), x * scale
    by_unit = upstream * weight
    gradient = (by_unit - unit * (by_unit * unit).mean(-1, keepdim=True)) * scale
    return gradient, (upstream * unit).flatten(0, -2).sum(0)


@_CompiledOnGpu
def gate(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU ``silu(gate) * up`` of tensors of one shape."""
    return silu(gate) * up


@_CompiledOnGpu
def gate_backward(gate: Tensor, up: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `gate` by gate and up, and its output, all of one shape."""
    dtype, exact = gate.dtype, torch.promote_types(gate.dtype, torch.float32)
    gate, up, upstream = gate.to(exact), up.to(exact), upstream.to(exact)
    sigmoid = torch.sigmoid(gate)
    activated = gate * sigmoid
    by_gate = upstream * up * sigmoid * (1 + gate * (1 - sigmoid))
    return by_gate.to(dtype), (upstream * activated).to(dtype), (activated * up).to(dtype)


@_CompiledOnGpu
def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotary positions ``x * cos + half(x) * sin`` in a dtype, with ``half([a, b]) = [-b, a]``."""
    a, b = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    (cos_a, cos_b), (sin_a, sin_b) = cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.cat([a * cos_a - b * sin_a, b * cos_b + a * sin_b], -1).to(dtype)


@_CompiledOnGpu
def rotate_backward(upstream: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of `rotate` by x, with its shape, in a dtype."""
    a, b = upstream.to(torch.promote_types(upstream.dtype, cos.dtype)).chunk(2, -1)
    (cos_a, cos_b), (sin_a, sin_b) = cos.chunk(2, -1), sin.chunk(2, -1)
    return torch.cat([a * cos_a + b * sin_b, b * cos_b - a * sin_a], -1).to(dtype)


@_CompiledOnGpu
def merge_attention(first: Tensor, a: Tensor, sums_a: Tensor, b: Tensor, sums_b: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [P, H, D] of other rows before those of two softmaxes of the same N rows as one, and its sums [H, N].

    Args:
        a, b: [N, H, D] outputs over two sets of keys.
        sums_a, sums_b: [H, N] their log-sum-exps; -inf where a row sees no key.
    """
    sums = torch.logaddexp(sums_a, sums_b)
    share_a, share_b = ((part - sums).exp().T[..., None] for part in (sums_a, sums_b))
    return torch.cat([first, (a * share_a + b * share_b).to(first.dtype)]), sums


@_CompiledOnGpu
def merge_attention_gradients(
    q_a: Tensor,
    k_a: Tensor,
    v_a: Tensor,
    q_b: Tensor,
    k_b: Tensor,
    v_b: Tensor,
    q_c: Tensor,
    k_c: Tensor,
    v_c: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the row's q, k and v from those of three calls: prompts, candidates to prompts, to themselves."""
    return torch.cat([q_a, q_b + q_c]), torch.cat([k_a + k_b, k_c]), torch.cat([v_a + v_b, v_c])


@_CompiledOnGpu
def log_sum_exp(logits: Tensor, softcap: float | None) -> Tensor:
    """Log-sum-exp [N] of soft-capped logits [N, B], in float32 or better."""
    values = capped(logits, softcap)
    top = values.amax(1)
    return (values - top[:, None]).exp().sum(1).log() + top


@_CompiledOnGpu
def logits_gradient(
    logits: Tensor,
    normalisers: Tensor,
    target_index: Tensor,
    upstream: Tensor,
    at_target: Tensor,
    softcap: float | None,
) -> Tensor:
    """Gradient [N, B] by the raw logits, ``upstream (onehot - softmax)`` through the soft-cap.

    Args:
        target_index: [N] int64, index of a row's target in the block.
        at_target: [N] the upstream of rows whose target is in the block, 0 of the others.
    """
    values = capped(logits, softcap)
    words = torch.arange(logits.shape[1], device=logits.device)
    chosen = torch.where(words == target_index[:, None], at_target[:, None], 0.0)
    gradient = chosen - upstream[:, None] * (values - normalisers[:, None]).exp()
    if softcap is not None:
        gradient = gradient * (1 - (values / softcap) ** 2)
    return gradient.to(logits.dtype)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Soft-capped logits, with their shape, in float32 or better; the same tensor where nothing changes."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return values if softcap is None else torch.tanh(values / softcap) * softcap
