"""Log-probs by a model's output head as its own forward computes them, with any adapter on it.

A plain head, and one with low-rank adapters, never has all its logits in memory; of any other the logits are computed.

Shapes: N target tokens, D hidden size, V vocabulary, r rank of an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from penchant.engine.kernels.compiled import capped
from penchant.engine.kernels.linear_log_probs import SharedGradient, compute_dtype, linear_log_probs
from penchant.engine.kernels.output_layer import LowRank
from penchant.engine.memory import track_memory


def head_log_probs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    *,
    softcap: float | None = None,
    shared: SharedGradient | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Log-softmax of ``head(hidden) / temperature`` at the targets.

    Args:
        head: a linear layer, with or without PEFT's wrapping.
        hidden: [N, D].
        targets: [N] int64.
        softcap, shared: as in `linear_log_probs`.
        temperature: > 0; the capped logits are divided by it.

    Returns:
        [N] log-probs, nats, in float32 or better.
    """
    layer = _active_layer(head)
    if not (_is_linear(layer) or lora_rank(layer)):
        logits = head(hidden.to(compute_dtype(next(head.parameters()))))
        return target_log_probs(capped(logits, softcap) / temperature, targets)
    linear = layer if _is_linear(layer) else layer.base_layer
    hidden, bias = hidden.to(compute_dtype(linear.weight)), linear.bias
    if temperature != 1:
        # A cap c of logits x is c tanh(x / c): divided by T it is a cap c / T of x / T.
        hidden, bias = hidden / temperature, None if bias is None else bias / temperature
        softcap = None if softcap is None else softcap / temperature
    adapter = None if linear is layer else _low_rank(layer, hidden)
    return linear_log_probs(hidden, linear.weight, bias, targets, softcap=softcap, shared=shared, adapter=adapter)


def target_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-softmax of logits [N, V] at the targets [N], nats.

    By `logsumexp`, whose sum is exact to float32's rounding: torch's `log_softmax` on a CPU adds up a row's
    exponentials in order, and over the 49,152 words of a pretrained model every log-prob came out 1.5e-5 too high.
    """
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def lora_rank(head: nn.Module) -> int:
    """Total rank of the active low-rank adapters on a linear head; 0 with none, or with one of another kind."""
    layer = _active_layer(head)
    if not hasattr(layer, "lora_A"):
        return 0
    from peft.tuners.lora import Linear

    if not isinstance(layer, Linear) or layer.disable_adapters or layer.merged or not _is_linear(layer.base_layer):
        return 0
    names = _active_names(layer)
    # Variants (DoRA and others) and biases of adapters compute something else.
    if any(name in layer.lora_variant or layer.lora_bias[name] for name in names):
        return 0
    return sum(layer.r[name] for name in names)


def linear_head_memory(head: nn.Module, targets: int, device: torch.device, dtype: str) -> int:
    """The most bytes that a linear head works with, forward and backward, beside its inputs and its weight's gradient.

    Args:
        head: on any device; only its shape and the rank of its adapter are looked at.
        targets: number of target tokens N.
        dtype: of the matrix products.
    """
    like: Any = head.weight
    rank, compute = lora_rank(head), like.dtype if dtype == "float32" else getattr(torch, dtype)
    with track_memory() as tracker:
        weight = torch.empty(like.shape, dtype=like.dtype, device=device, requires_grad=like.requires_grad)
        ids = torch.empty(targets, dtype=torch.int64, device=device)
        hidden = torch.empty(targets, like.shape[1], dtype=compute, device=device, requires_grad=True)
        low, up = (torch.empty(n, rank, dtype=compute, device=device, requires_grad=True) for n in (targets, len(like)))
        adapter = LowRank(low, up) if rank else None
        tracker.reset()
        inputs = tracker.live
        linear_log_probs(hidden, weight, None, ids, adapter=adapter).sum().backward()
        gradients = sum(parameter.grad.nbytes for parameter in (weight, up) if parameter.grad is not None)
        return max(0, tracker.peak - inputs - gradients)


def _low_rank(layer: Any, hidden: Tensor) -> LowRank:
    low, up = [], []
    for name in _active_names(layer):
        down = layer.lora_A[name]
        inputs = layer.lora_dropout[name](hidden.to(down.weight.dtype))
        low.append((down(inputs) * layer.scaling[name]).to(hidden.dtype))
        up.append(layer.lora_B[name].weight)
    return LowRank(torch.cat(low, -1), torch.cat(up, -1)) if len(low) > 1 else LowRank(low[0], up[0])


def _active_names(layer: Any) -> list[str]:
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _active_layer(head: Any) -> Any:
    """The layer that computes what the head does: a trained copy, or the one under adapters that are off or merged."""
    if _is_linear(head):
        return head
    if hasattr(head, "modules_to_save"):
        copies = head.modules_to_save
        names = head.active_adapters
        uses_copy = not head.disable_adapters and names and all(name in copies for name in names)
        return _active_layer(copies[names[0]] if uses_copy else head.original_module)
    if hasattr(head, "lora_A") and head.disable_adapters != head.merged:
        return _active_layer(head.base_layer)
    return head


def _is_linear(layer: nn.Module) -> bool:
    """Whether a layer computes a linear layer's product and nothing else."""
    return type(layer).forward is nn.Linear.forward and not layer._forward_hooks and not layer._forward_pre_hooks
