"""Copies of a model's float32 weights in the dtype of its products, made once a step instead of in every layer.

The optimizer, checkpoints and saved models see the float32 weights. While a step's gradients are computed, linear
layers hold the copies; gradients of all micro-batches are added up in float32. Copies of layers that read the same
hidden states (query, key and value; gate and up) lie in one matrix, so that one product computes all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from penchant.engine.kernels.compiled import decoder_layers

STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names of linear layers that read the same hidden states, in the order in which models mostly call them."""

ADDED_TOGETHER = 16
"""Gradients that are added up by one call: more need more memory, fewer more launches."""


class _Copy(NamedTuple):
    """A copy of trained weights, one after the other along its rows: several where linear layers are stacked."""

    copy: nn.Parameter
    weights: list[nn.Parameter]

    @classmethod
    def of_weights(cls, weights: list[nn.Parameter], dtype: torch.dtype) -> _Copy:
        rows = sum(len(weight) for weight in weights)
        return cls(nn.Parameter(weights[0].new_empty((rows, *weights[0].shape[1:]), dtype=dtype)), weights)

    def parts(self, values: Tensor) -> Sequence[Tensor]:
        """Views of the copy, or of its gradient, by weight."""
        return values.split([len(weight) for weight in self.weights])


class _Stack:
    """Linear layers of one input as one.

    Attributes:
        weight: [sum of sizes, inputs]; `bias`: [sum of sizes] or None.
        sizes: outputs of every layer.
        inputs, outputs: of the call whose parts are still to be read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, sizes: list[int]) -> None:
        self.weight, self.bias, self.sizes = weight, bias, sizes
        self.inputs: Tensor | None = None
        self.outputs: Sequence[Tensor] = ()


class _StackedLinear(nn.Module):
    """One of a stack's layers: the first that is called with an input computes all, the last one forgets them."""

    def __init__(self, stack: _Stack, index: int) -> None:
        super().__init__()
        self.stack, self.index = stack, index

    def forward(self, x: Tensor) -> Tensor:
        stack = self.stack
        if stack.inputs is not x:
            stack.inputs, stack.outputs = x, linear(x, stack.weight, stack.bias).split(stack.sizes, -1)
        output = stack.outputs[self.index]
        if self.index == len(stack.sizes) - 1:
            stack.inputs, stack.outputs = None, ()
        return output


class WorkingWeights:
    """The copies for one model; none where nothing in its layers is trained in float32, or products are in float32.

    Args:
        model: its decoder layers' linear layers, with or without adapters, get copies.
        dtype: of the matrix products.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._copies: list[_Copy] = []
        self._parameters: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []
        self._modules: list[tuple[nn.Module, str, nn.Module, nn.Module]] = []
        if dtype == torch.float32:
            return
        for layer in decoder_layers(model):
            stacked: set[nn.Module] = set()
            for part in layer.modules():
                for names in STACKED:
                    stacked.update(self._stack(part, names, dtype))
                if isinstance(part, nn.Linear) and part not in stacked:
                    self._copy(part, dtype)

    def _stack(self, parent: nn.Module, names: Sequence[str], dtype: torch.dtype) -> list[nn.Module]:
        """Stack a module's layers of these names, and return them; none where they cannot be."""
        layers = [parent._modules.get(name) for name in names]
        linears = [layer for layer in layers if type(layer) is nn.Linear and not layer._forward_hooks]
        biased = {layer.bias is not None for layer in linears}
        trained = [parameter for layer in linears for parameter in layer.parameters()]
        if len(linears) < len(names) or len(biased) > 1 or not all(map(_is_trained, trained)):
            return []
        weight = _Copy.of_weights([layer.get_parameter("weight") for layer in linears], dtype)
        biases = (
            [_Copy.of_weights([layer.get_parameter("bias") for layer in linears], dtype)] if biased == {True} else []
        )
        self._copies += [weight, *biases]
        stack = _Stack(weight.copy, biases[0].copy if biases else None, [layer.out_features for layer in linears])
        for index, (name, layer) in enumerate(zip(names, linears, strict=True)):
            self._modules.append((parent, name, layer, _StackedLinear(stack, index)))
        return [*linears]

    def _copy(self, part: nn.Module, dtype: torch.dtype) -> None:
        for name, parameter in part.named_parameters(recurse=False):
            if _is_trained(parameter):
                self._copies.append(_Copy.of_weights([parameter], dtype))
                self._parameters.append((part, name, parameter, self._copies[-1].copy))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The layers hold fresh copies inside the context; `add_gradients` is called after every backward in it."""
        if not self._copies:
            yield
            return
        with torch.no_grad():
            targets = [part for copy in self._copies for part in copy.parts(copy.copy)]
            weights: list[Tensor] = [weight for copy in self._copies for weight in copy.weights]
            torch._foreach_copy_(targets, weights)
        for part, name, _, copied in self._parameters:
            part._parameters[name] = copied
        for parent, name, _, stacked in self._modules:
            parent._modules[name] = stacked
        try:
            yield
        finally:
            for part, name, weight, _ in self._parameters:
                part._parameters[name] = weight
            for parent, name, layer, _ in self._modules:
                parent._modules[name] = layer

    def add_gradients(self) -> None:
        """Add the gradients at the copies to those at the float32 weights, and drop them."""
        pairs: list[tuple[nn.Parameter, Tensor]] = []
        for copy in self._copies:
            if copy.copy.grad is not None:
                pairs += zip(copy.weights, copy.parts(copy.copy.grad), strict=True)
                copy.copy.grad = None
        while pairs:
            chunk = pairs[:ADDED_TOGETHER]
            del pairs[:ADDED_TOGETHER]
            sums = [torch.empty_like(weight) for weight, _ in chunk]
            torch._foreach_copy_(sums, [gradient for _, gradient in chunk])
            added = [(total, w.grad) for total, (w, _) in zip(sums, chunk, strict=True) if w.grad is not None]
            if added:
                torch._foreach_add_([total for total, _ in added], [earlier for _, earlier in added])
            for (weight, _), total in zip(chunk, sums, strict=True):
                weight.grad = total


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.dtype == torch.float32


def working_weights(model: nn.Module, device: torch.device, dtype: str, processes: int) -> WorkingWeights:
    """The copies that training makes: on a CUDA card in one process, and elsewhere none.

    Args:
        dtype: of the matrix products.
        processes: number of processes that share the weights; sharded ones are cast as they are gathered.
    """
    copied = device.type == "cuda" and processes == 1
    return WorkingWeights(model, getattr(torch, dtype) if copied else torch.float32)
