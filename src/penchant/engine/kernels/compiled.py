"""Formulas outside of a decoder layer that a GPU computes by one kernel each: passes over logits, merged attention.

On a GPU a small operation takes longer to launch than to run, and a large one waits for memory; torch.compile makes one
kernel of a formula. A layer is compiled as a whole (`whole_layers`). The CPU has passes of its own, which stay within a
core's cache.

Shapes: N tokens, B words of a block, H heads, D head size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
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
