"""What torch.compile makes for a GPU: whole decoder layers, passes over logits, merged attention.

On a GPU a small operation takes longer to launch than to run, and a large one waits for memory; torch.compile makes one
kernel of a formula. The CPU has passes of its own, which stay within a core's cache.

A layer's norms, rotations, gate, residual sums and their backward become a few kernels between the matrix products;
attention is an operator of its own (`shared_prompts`). The norm after the last layer is compiled too. All layers share
their graph, since weights are its inputs, and sizes are symbolic, so that new lengths compile nothing. Passes without
gradients run the layers as they are: those of references and of sampling have other arguments, which would compile
graphs of their own.

Shapes: N tokens, B words of a block, H heads, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map_only

logger = logging.getLogger(__name__)


def use_compiled(x: Tensor) -> bool:
    """Whether a tensor of any shape is computed by these formulas: one on a GPU is."""
    return x.is_cuda


def short_reason(error: Exception) -> str:
    """The beginning of a compiler's error, on one line."""
    return " ".join(str(error).split())[:200]


class _CompiledOnGpu:
    """A formula, compiled at its first call with tensors of a GPU; a line says where that fails."""

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
            logger.warning(f"torch.compile does not work here, which is slower: {short_reason(error)}")
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
def merge_attention(prompts: Tensor, a: Tensor, sums_a: Tensor, b: Tensor, sums_b: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [P, H, D] of other rows before those of two softmaxes of the same N rows as one, and its sums [H, N].

    Args:
        a, b: [N, H, D] outputs over two sets of keys.
        sums_a, sums_b: [H, N] their log-sum-exps; -inf where a row sees no key.
    """
    sums = torch.logaddexp(sums_a, sums_b)
    share_a, share_b = ((part - sums).exp().T[..., None] for part in (sums_a, sums_b))
    return torch.cat([prompts, (a * share_a + b * share_b).to(prompts.dtype)]), sums


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
def accumulate_logsumexp(
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
        index: as in `accumulate_logsumexp`; `normalisers` and `upstream` are [N].
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
        layer._compiled_call_impl = _with_eager_fallback(layer._compiled_call_impl, layer, model)


def undo_compilation(model: nn.Module) -> None:
    """Run every decoder layer as its own class does."""
    for layer in _compiled_modules(model):
        layer._compiled_call_impl = None


def _with_eager_fallback(compiled: Any, layer: nn.Module, model: nn.Module) -> Callable[..., Any]:
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
