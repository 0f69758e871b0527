"""AdamW, gradient clipping, the scale of float16's loss, and the learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from penchant.config.run_sections import TrainingConfig


def build_optimizer(module: nn.Module, config: TrainingConfig, head_decay: float = 0.0) -> torch.optim.AdamW:
    """Fused AdamW over the trained parameters; biases and norms (below two dimensions) are not decayed.

    With ``decay_towards: start`` the model's weights are decayed to their current values theta_0:
    ``theta -= lr lambda (theta - theta_0)``. A preference head's weights are always decayed to zero.

    Args:
        head_decay: weight decay of a preference head.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    weights = [p for name, p in trained if p.ndim >= 2 and not name.startswith("head.")]
    groups = [
        {"params": weights, "weight_decay": config.weight_decay},
        {"params": [p for name, p in trained if p.ndim >= 2 and name.startswith("head.")], "weight_decay": head_decay},
        {"params": [p for _, p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=True,
    )
    if config.decay_towards == "start" and weights:
        optimizer.register_step_post_hook(_return_to_start(weights))
    return optimizer


def _return_to_start(parameters: Sequence[nn.Parameter]) -> Callable[..., None]:
    """A hook that adds ``lr lambda theta_0`` after AdamW's decay of the first group, ``theta (1 - lr lambda)``."""
    starts = [parameter.detach().clone() for parameter in parameters]

    @torch.no_grad()
    def add_start(optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        group = optimizer.param_groups[0]
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.add_(start, alpha=group["lr"] * group["weight_decay"])

    return add_start


def gradient_norm(module: nn.Module) -> Tensor:
    """The norm of all gradients, over all processes, a scalar tensor on their device."""
    total = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return total.full_tensor() if isinstance(total, DTensor) else total


def scale_and_clip(module: nn.Module, factor: float, norm: float, max_norm: float) -> float:
    """Multiply every gradient by `factor`, and by less where their norm would be above `max_norm`.

    Both in one pass over the gradients, which takes as long as a part of the optimizer's step.

    Args:
        norm: of the gradients as they are.

    Returns:
        The norm of the multiplied gradients, before clipping.
    """
    scaled = factor * norm
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor * min(1.0, max_norm / (scaled + 1e-6)))
    return scaled


@dataclass(frozen=True)
class LossScale:
    """The factor of the loss that keeps float16's gradients in range, as in ``torch.amp.GradScaler``, whose numbers
    these are.

    Attributes:
        factor: a power of two.
        steps: steps since it last changed.
    """

    factor: float = 2.0**16
    steps: int = 0

    GROWTH_INTERVAL = 2000

    def next_scale(self, is_finite: bool) -> LossScale:
        """The scale of the next step: half where a gradient overflowed, double after `GROWTH_INTERVAL` good steps."""
        if not is_finite:
            return LossScale(self.factor / 2)
        if self.steps + 1 == self.GROWTH_INTERVAL:
            return LossScale(self.factor * 2)
        return LossScale(self.factor, self.steps + 1)


NO_SCALE = LossScale(1.0)
"""The scale of all dtypes but float16."""


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """The learning rate of a step: linear warm-up, then the schedule, which ends just above 0.

    Args:
        step: index of the step, from 0.
        total: number of steps of the run.
    """
    warmup = config.warmup if config.warmup >= 1 else config.warmup * total
    if step + 1 < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1.0, total - warmup)
    if config.schedule == "constant":
        return config.learning_rate
    if config.schedule == "linear":
        return config.learning_rate * (1 - max(0.0, progress))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * max(0.0, progress)))
