"""Decoder layers compiled as whole graphs, for a GPU: its host launches one kernel where Python had many operations.

A layer's norms, rotations, gate, residual sums and their backward become a few kernels between the matrix products;
attention is an operator of its own (`shared_prompts`). All layers share their graph, since weights are its inputs, and
sizes are symbolic, so that new lengths compile nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def decoder_layers(model: nn.Module) -> Iterator[nn.Module]:
    """The layers of a language model: the modules of its lists that hold attention."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            yield from (layer for layer in module if hasattr(layer, "self_attn"))


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile every decoder layer at its first call; where that fails, all run as they are, and a notice says so.

    Graphs of models that were compiled before in this process are dropped.

    Args:
        backend: torch's name of a compiler, or a function of a graph and its example inputs.
    """
    # The compiler keeps a few graphs for a function, and those of an earlier model count among them.
    torch.compiler.reset()
    layers = [*decoder_layers(model)]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend)
        layer._compiled_call_impl = _until_it_fails(layer._compiled_call_impl, layer, layers)


def undo_compilation(model: nn.Module) -> None:
    """Run every decoder layer as its own class does."""
    for layer in decoder_layers(model):
        layer._compiled_call_impl = None


def _until_it_fails(compiled: Any, layer: nn.Module, layers: list[nn.Module]) -> Callable[..., Any]:
    """The compiled call of a layer, which undoes the compilation of all layers where it cannot be compiled."""
    # Not before it is needed: the compiler takes seconds to import.
    from torch._dynamo.exc import TorchDynamoException

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            for other in layers:
                other._compiled_call_impl = None
            reason = " ".join(str(error).split())[:200]
            logger.warning(f"layers are not compiled, which costs time: {reason}")
            return layer(*args, **kwargs)

    return call
