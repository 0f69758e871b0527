"""Decoder layers compiled as whole graphs, for a GPU: its host launches one kernel where Python had many operations.

A layer's norms, rotations, gate, residual sums and their backward become a few kernels between the matrix products;
attention is an operator of its own (`shared_prompts`). The norm after the last layer is compiled too. All layers share
their graph, since weights are its inputs, and sizes are symbolic, so that new lengths compile nothing. Passes without
gradients run the layers as they are: those of references and of sampling have other arguments, which would compile
graphs of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from penchant.engine.kernels.compiled import short_reason

logger = logging.getLogger(__name__)

INDUCTOR_OPTIONS: dict[str, str | int | bool | Callable[..., Any]] = {
    # Adapters' dropout draws the numbers that it draws without compilation.
    "fallback_random": True,
    # A norm's two reductions are one kernel for rows of every length: thresholds would compile a graph for short ones.
    "triton.mix_order_reduction_non_strict_mode": True,
}

NOT_COMPILED = "layers are not compiled, which is slower"


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a language model: the members of its lists of modules some of which have attention.

    Attention is a child whose name has "attn" or "attention" in it, as in all models of transformers.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [layer for layers in lists if any(map(_has_attention, layers)) for layer in layers]


def _compiled_modules(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, and the norms beside their list, as the one after the last layer."""
    layers = set(decoder_layers(model))
    norms = [
        child
        for module in model.modules()
        if any(isinstance(part, nn.ModuleList) and layers & {*part} for part in module.children())
        for child in module.children()
        if "Norm" in type(child).__name__
    ]
    return [*layers, *norms]


def _has_attention(layer: nn.Module) -> bool:
    return any("attn" in name or "attention" in name for name, _ in layer.named_children())


def compile_layers(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile every decoder layer and the last norm at their first call; where that fails, a line says so.

    Graphs of models that were compiled before in this process are dropped.

    Args:
        backend: torch's name of a compiler, or a function of a graph and its example inputs.
    """
    # The compiler keeps a few graphs for a function, and those of an earlier model count among them.
    torch.compiler.reset()
    options = INDUCTOR_OPTIONS if backend == "inductor" else None
    for layer in _compiled_modules(model):
        layer.compile(dynamic=True, backend=backend, options=options)
        layer._compiled_call_impl = _until_it_fails(layer._compiled_call_impl, layer, model)


def undo_compilation(model: nn.Module) -> None:
    """Run every decoder layer as its own class does."""
    for layer in _compiled_modules(model):
        layer._compiled_call_impl = None


def _until_it_fails(compiled: Any, layer: nn.Module, model: nn.Module) -> Callable[..., Any]:
    """The compiled call of a layer, which undoes the compilation of all layers where it cannot be compiled."""
    # Not before it is needed: the compiler takes seconds to import.
    from torch._dynamo.exc import TorchDynamoException

    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return layer._call_impl(*args, **kwargs)
        try:
            return compiled(*args, **kwargs)
        except TorchDynamoException as error:
            undo_compilation(model)
            logger.warning(f"{NOT_COMPILED}: {short_reason(error)}")
            return layer(*args, **kwargs)

    return call
