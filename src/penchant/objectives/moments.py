"""Moving mean and standard deviation of a number over optimizer batches.

Each rule for the first batches is the weight of the current batch's value in the average:
``average += weight (value - average)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penchant.objectives.base import State

LEAST_DEVIATION = 1e-3
"""Nats. Below it a deviation of log-ratios is rounding noise, which moves with the size of the micro-batches."""


def initial_moments() -> State:
    """The moments before the first batch: step 0, mean 0, deviation 0."""
    values = {name: torch.zeros((), dtype=torch.float64) for name in ("mean", "deviation")}
    return {"step": torch.zeros((), dtype=torch.int64), **values}


def bias_corrected(momentum: float, state: State) -> float:
    """``(1 - m) / (1 - m^t)`` at batch t: the average from 0 divided by ``1 - m^t``, a weighted mean of t batches."""
    return (1 - momentum) / (1 - momentum ** (int(state["step"]) + 1))


def first_batch(momentum: float, state: State) -> float:
    """1 until a batch's deviation is above the floor, then 1 - m: the average starts at that batch's value."""
    return 1.0 if float(state["deviation"]) <= LEAST_DEVIATION else 1 - momentum


def zero(momentum: float, state: State) -> float:
    """1 - m at every batch: the average starts at 0, and is biased towards it."""
    return 1 - momentum


STARTS: Mapping[str, Callable[[float, State], float]] = {
    "bias_corrected": bias_corrected,
    "first_batch": first_batch,
    "zero": zero,
}
"""Rules for the first batches of a moving average, by the name of the option."""


def update_moments(values: Tensor, momentum: float, start: str, state: State) -> State:
    """The moving mean and (sample) standard deviation after a batch; a batch without values leaves them.

    Args:
        values: [N] the values of the batch.
        momentum: m, in [0, 1).
        start: a name in `STARTS`.
    """
    if not len(values):
        return state  # Not a step, or the next batch would not be the first.
    weight = STARTS[start](momentum, state)
    deviation = values.std() if len(values) > 1 else values.new_zeros(())
    batch = {"mean": values.mean(), "deviation": deviation}
    averages = {name: state[name] + weight * (value.to(state[name]) - state[name]) for name, value in batch.items()}
    return {**state, "step": state["step"] + 1, **averages}
