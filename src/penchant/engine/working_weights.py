"""Copies of a model's float32 weights in the dtype of its products, made once a step instead of in every layer.

The optimizer, checkpoints and saved models see the float32 weights. While a step's gradients are computed, linear
layers hold the copies; gradients of all micro-batches are added up in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from penchant.engine.whole_layers import decoder_layers


class WorkingWeights:
    """The copies for one model; without any where nothing in its layers is trained in float32.

    Args:
        model: its decoder layers' linear layers, with or without adapters, get copies.
        dtype: of the copies.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        trained = {
            (id(part), name): (part, name, parameter)
            for layer in decoder_layers(model)
            for part in layer.modules()
            if isinstance(part, nn.Linear)
            for name, parameter in part.named_parameters(recurse=False)
            if parameter.requires_grad and parameter.dtype == torch.float32
        }
        self._owners = [(part, name) for part, name, _ in trained.values()]
        self._weights: list[Tensor] = [parameter for *_, parameter in trained.values()]
        self._copies: list[Tensor] = [nn.Parameter(torch.empty_like(weight, dtype=dtype)) for weight in self._weights]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The layers hold fresh copies inside the context; then the gradients are at the float32 weights."""
        if not self._copies:
            yield
            return
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._weights)
        self._set_weights(self._copies)
        try:
            yield
        finally:
            self._set_weights(self._weights)
            self.add_gradients()

    def add_gradients(self) -> None:
        """Add the gradients at the copies to those at the float32 weights, and drop them."""
        pairs = [(w, c.grad) for w, c in zip(self._weights, self._copies, strict=True) if c.grad is not None]
        if not pairs:
            return
        sums = [torch.empty_like(weight) for weight, _ in pairs]
        torch._foreach_copy_(sums, [gradient for _, gradient in pairs])
        if pairs[0][0].grad is not None:
            torch._foreach_add_(sums, [weight.grad for weight, _ in pairs if weight.grad is not None])
        for (weight, _), total in zip(pairs, sums, strict=True):
            weight.grad = total
        for copy in self._copies:
            copy.grad = None

    def _set_weights(self, tensors: list[Tensor]) -> None:
        for (part, name), tensor in zip(self._owners, tensors, strict=True):
            part._parameters[name] = tensor  # type: ignore[assignment]
