"""A linear layer with its low-rank adapter in five products; the adapter's are added to the layer's in place.

PEFT's own forward makes a tensor of the layer's size for each of the adapter's product, its scaling and the sum,
forward and backward. Shapes: T tokens, I inputs, O outputs, r the rank.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from penchant.engine.kernels.layer_fusion import subclass_with_forward
from penchant.engine.kernels.linear_log_probs import compute_dtype

if TYPE_CHECKING:
    from peft import PeftModel


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """A linear layer with LoRA, ``x W^T + bias + scaling x A^T B^T``, W and bias frozen (arXiv 2106.09685, equation 3).

    Args:
        x: [..., I].
        weight: [O, I]; `bias`: [O] or None.
        a: [r, I]; `b`: [O, r].

    Returns:
        [..., O] in the dtype of the matrix product: autocast's where it is on, else that of `x`.
    """
    dtype = compute_dtype(x)
    inputs = [None if tensor is None else tensor.to(dtype) for tensor in (x, weight, bias, a, b)]
    with torch.autocast(x.device.type, enabled=False):
        y: Tensor = _LoraLinear.apply(*inputs, scaling)
    return y


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ a.T
        y = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
        y.addmm_(low, b.T, alpha=scaling)
        ctx.scaling = scaling
        ctx.save_for_backward(rows, weight, a, b, low)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, a, b, low = ctx.saved_tensors
        dy = upstream.reshape(-1, upstream.shape[-1])
        low_gradient = (dy @ b).mul_(ctx.scaling)
        dx = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ weight).addmm_(low_gradient, a).view(*upstream.shape[:-1], -1)
        return dx, None, None, low_gradient.T @ rows, (dy.T @ low).mul_(ctx.scaling), None


class _Fused(nn.Module):
    """`lora_linear` while the one adapter is on and not merged."""

    base_layer: nn.Linear
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]
    active_adapters: list[str]
    disable_adapters: bool
    merged: bool

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or self.disable_adapters or self.merged:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        (name,) = self.active_adapters
        a, b, base = self.lora_A[name], self.lora_B[name], self.base_layer
        assert isinstance(a, nn.Linear)
        assert isinstance(b, nn.Linear)
        return lora_linear(x, base.weight, base.bias, a.weight, b.weight, self.scaling[name])


def fuse_adapters(adapters: PeftModel) -> None:
    """Fuse every plain linear layer that has one adapter without dropout; the others keep PEFT's forward."""
    from peft.tuners.lora import Linear

    for module in adapters.modules():
        if type(module) is not Linear or type(module.base_layer) is not nn.Linear:
            continue
        plain = not module.lora_variant and not any(module.lora_bias.values()) and len(module.lora_A) == 1
        if plain and all(isinstance(dropout, nn.Identity) for dropout in module.lora_dropout.values()):
            module.__class__ = subclass_with_forward(_Fused, module.__class__)
