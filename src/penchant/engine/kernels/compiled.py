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
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import silu
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only


def use_compiled(x: Tensor) -> bool:
    """Whether a tensor of any shape is computed by these formulas: one on a GPU is."""
    return x.is_cuda


class _CompiledOnGpu:
    """A formula, compiled at its first call with tensors of a GPU; if that fails it warns and stays uncompiled."""

    def __init__(self, formula: Callable[..., Any]) -> None:
        self._formula = formula
        self._on_gpu: Callable[..., Any] | None = None

    def __call__(self, tensor: Tensor, *arguments: Any) -> Any:
        if isinstance(tensor, FakeTensor):
            return _results_only(self._formula, tensor, *arguments)
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


def _results_only(formula: Callable[..., Any], tensor: FakeTensor, *arguments: Any) -> Any:
    """A formula's results for tensors without data, where memory and operations are counted: one kernel has no others.

    Results are made anew, since what was made while nothing counted is not seen.
    """
    with _disable_current_modes(), tensor.fake_mode:
        results = formula(tensor, *arguments)
    return tree_map_only(Tensor, torch.empty_like, results)


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
def add_words(
    logits: Tensor, index: Tensor, normalisers: Tensor, chosen: Tensor, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [N] of soft-capped logits over the words so far, and targets' logits [N], with a block's words added.

    Args:
        logits: [N, B] raw logits of the block.
        index: [N] int64, index of a row's target in the block; any number outside for one that is not there.
        normalisers, chosen: [N] those of the blocks before, in float32 or better; -inf and any number at the first.
    """
    values, last = capped(logits, softcap), logits.shape[1] - 1
    top = values.amax(1)
    sums = (values - top[:, None]).exp().sum(1).log() + top
    target_logits = capped(logits.gather(1, index.clamp(0, last)[:, None])[:, 0], softcap)
    in_block = (index >= 0) & (index <= last)
    return torch.logaddexp(normalisers, sums), torch.where(in_block, target_logits, chosen)


@_CompiledOnGpu
def logits_gradient(
    logits: Tensor, normalisers: Tensor, index: Tensor, upstream: Tensor, softcap: float | None
) -> None:
    """Replace raw logits [N, B] by their gradient, ``upstream (onehot - softmax)`` through the soft-cap.

    Args:
        index: as in `add_words`; `normalisers` and `upstream` are [N].
    """
    values = capped(logits, softcap)
    words = torch.arange(logits.shape[1], device=logits.device)
    chosen = torch.where(words == index[:, None], upstream[:, None], 0.0)
    gradient = chosen - upstream[:, None] * (values - normalisers[:, None]).exp()
    if softcap is not None:
        gradient = gradient * (1 - (values / softcap) ** 2)
    logits.copy_(gradient)


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """Soft-capped logits, with their shape, in float32 or better; the same tensor where nothing changes."""
    values = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return values if softcap is None else torch.tanh(values / softcap) * softcap
