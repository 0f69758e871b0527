"""Parts of a decoder layer in fewer passes over memory than their formulas have operations, forward and backward.

Every part saves its inputs for the backward (a norm also one number per row) and recomputes the rest, in a few passes
over rows that stay in a core's cache. On a GPU torch compiles whole layers instead (`compiled`).

Shapes: D the last dimension.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from penchant.engine.kernels.linear_log_probs import compute_dtype
from penchant.engine.kernels.output_layer import passes

_PASS_ELEMENTS = 1 << 17
"""Numbers of a gate's rows processed at a time, so that they stay in a core's cache between operations."""


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm ``weight * x / sqrt(mean(x²) + epsilon)`` over the last dimension (arXiv 1910.07467, equation 4).

    Args:
        x: [..., D], float32 or float64.
        weight: [D].

    Returns:
        [..., D] in x's dtype.
    """
    y: Tensor = _RmsNorm.apply(x, weight, epsilon)
    return y


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """SwiGLU ``silu(gate) * up`` (arXiv 2002.05202, section 2) of tensors of one shape."""
    y: Tensor = _SwiGLU.apply(gate, up)
    return y


def swiglu_linear(gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of SwiGLU, ``(silu(gate) * up) @ weight.T + bias``, without saving the gated tensor.

    Args:
        gate, up: [..., I].
        weight: [O, I].
        bias: [O] or None.

    Returns:
        [..., O] in the dtype of the matrix product: autocast's where it is on, else that of `gate`.
    """
    dtype = compute_dtype(gate)
    inputs = [None if tensor is None else tensor.to(dtype) for tensor in (gate, up, weight, bias)]
    with torch.autocast(gate.device.type, enabled=False):
        y: Tensor = _GatedLinear.apply(*inputs)
    return y


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions ``x * cos + half(x) * sin``, ``half([a, b]) = [-b, a]`` (arXiv 2104.09864, equation 34).

    Args:
        x: [..., D], D even.
        cos, sin: of the same shape, or of size 1 where every x is rotated alike.
    """
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        unit = x * scale
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = (upstream * unit).flatten(0, -2).sum(0)
        gradient = upstream * weight
        along = torch.linalg.vecdot(gradient, unit).unsqueeze(-1).div_(-x.shape[-1])
        return gradient.addcmul_(unit, along).mul_(scale), weight_gradient, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        gate_gradient, up_gradient = torch.empty_like(gate), torch.empty_like(up)
        for part in _rows(upstream, gate, up, gate_gradient, up_gradient):
            _gate_backward(*part)
        return gate_gradient, up_gradient


class _GatedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return linear(_gate(gate, up), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        dy = upstream.reshape(-1, upstream.shape[-1])
        gated_gradient = dy @ weight
        gate_gradient, up_gradient = torch.empty_like(gate), torch.empty_like(up)
        for part in _rows(gated_gradient, gate, up, gate_gradient, up_gradient):
            # The incoming gradient is no longer needed: the gated rows overwrite it.
            part[0].copy_(_gate_backward(*part))
        weight_gradient = dy.T @ gated_gradient if ctx.needs_input_grad[2] else None
        return gate_gradient, up_gradient, weight_gradient, dy.sum(0) if ctx.needs_input_grad[3] else None


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    for y, g, u in _rows(out, gate, up):
        torch.ops.aten.silu.out(g, out=y)
        y.mul_(u)
    return out


def _gate_backward(upstream: Tensor, gate: Tensor, up: Tensor, gate_gradient: Tensor, up_gradient: Tensor) -> Tensor:
    """Write both gradients; return the gated tensor, computed again."""
    silu_gradient = upstream * up
    torch.ops.aten.silu_backward.grad_input(silu_gradient, gate, grad_input=gate_gradient)
    torch.ops.aten.silu.out(gate, out=up_gradient)
    gated_rows = torch.mul(up_gradient, up, out=silu_gradient)
    up_gradient.mul_(upstream)
    return gated_rows


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.dtype = x.dtype
        x = x.to(torch.promote_types(x.dtype, cos.dtype))
        (a, b), (sin_a, sin_b) = x.chunk(2, -1), sin.chunk(2, -1)
        y = x * cos
        y_a, y_b = y.chunk(2, -1)
        y_a.addcmul_(b, sin_a, value=-1)
        y_b.addcmul_(a, sin_b)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        (a, b), (sin_a, sin_b) = upstream.chunk(2, -1), sin.chunk(2, -1)
        gradient = upstream * cos
        gradient_a, gradient_b = gradient.chunk(2, -1)
        gradient_a.addcmul_(b, sin_b)
        gradient_b.addcmul_(a, sin_a, value=-1)
        return gradient.to(ctx.dtype), None, None


def _rows(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of every tensor, some at a time."""
    rows = max(1, _PASS_ELEMENTS // tensors[0].shape[-1])
    return passes(rows, *(tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors))
