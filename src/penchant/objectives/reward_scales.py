"""Rewards of a prompt's candidates: their sources, and their scales.

Shapes: every table is [G, K]; `candidates` is a bool mask, and rewards are 0 outside of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from penchant.objectives.base import Groups, State

LEAST_DEVIATION = 1e-6
"""Rewards that differ by less count as equal."""


def data_scores(groups: Groups, candidates: Tensor) -> Tensor:
    """The scores of the data, or of the run's reward."""
    return torch.where(candidates, groups.scores, 0.0)


def win_shares(groups: Groups, candidates: Tensor) -> Tensor:
    """Win shares ``(wins - losses) / (K - 1)`` by the group's preferences, in [-1, 1]."""
    count = candidates.sum(1, keepdim=True)
    shares = (groups.better.sum(2) - groups.better.sum(1)) / (count - 1).clamp(min=1)
    return torch.where(candidates, shares, 0.0)


REWARDS: Mapping[str, Callable[[Groups, Tensor], Tensor]] = {"scores": data_scores, "wins": win_shares}


def unscaled(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """The rewards as they are."""
    return rewards


def by_prompt(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """Rewards of mean 0 and deviation 1 among each prompt's candidates; of two candidates always 1 and -1."""
    count = candidates.sum(1, keepdim=True)
    centred = torch.where(candidates, rewards - rewards.sum(1, keepdim=True) / count, 0.0)
    deviation = ((centred**2).sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=LEAST_DEVIATION)


def by_running_moments(rewards: Tensor, candidates: Tensor, state: State) -> Tensor:
    """Rewards less the mean and over the deviation of all rewards in the state; unchanged where there are none yet."""
    if not float(state["count"]):
        return rewards
    deviation = (state["squares"] / state["count"]).sqrt().clamp(min=LEAST_DEVIATION)
    return torch.where(candidates, (rewards - state["mean"].to(rewards)) / deviation.to(rewards), 0.0)


SCALES: Mapping[str, Callable[[Tensor, Tensor, State], Tensor]] = {
    "none": unscaled,
    "prompt": by_prompt,
    "running": by_running_moments,
}


def initial_moments() -> State:
    """The moments of no rewards: count, mean, and sum of squared distances from the mean, all 0."""
    return {name: torch.zeros((), dtype=torch.float64) for name in ("count", "mean", "squares")}


def add_rewards(rewards: Tensor, candidates: Tensor, state: State) -> State:
    """The moments with a batch's rewards (Chan, Golub and LeVeque 1983, equation 2.1)."""
    values = rewards[candidates].to(state["mean"])
    if not len(values):
        return state
    count = state["count"] + len(values)
    distance = values.mean() - state["mean"]
    squares = ((values - values.mean()) ** 2).sum() + distance**2 * state["count"] * len(values) / count
    return {
        "count": count,
        "mean": state["mean"] + distance * len(values) / count,
        "squares": state["squares"] + squares,
    }
