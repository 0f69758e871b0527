"""A weighted sum of objectives, as in DPO + 0.2 SFT."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import ClassVar

import torch
from torch import Tensor

from penchant.objectives.base import FittedObjective, Groups, Needs, Objective, Output, State, Sum, require
from penchant.objectives.dpo import DPO
from penchant.objectives.sft import SFT


@dataclass(frozen=True)
class Part:
    """One objective and its weight."""

    weight: float
    objective: Objective


@dataclass(frozen=True)
class WeightedSum:
    """``L = sum_i w_i L_i``, each part's loss its own mean over the optimizer batch.

    The parts' means have denominators of their own (tokens, pairs, groups), so the sum is a fact of the whole batch:
    the objective is coupled. Source: DPO with a likelihood term, as in section 4 of arXiv 2404.19733.

    Differs from TRL's lists of loss types: a part is a whole objective, with its own hyper-parameters and state.

    Attributes:
        parts: at least one, with finite weights; the default is DPO + 0.2 SFT.
    """

    parts: tuple[Part, ...] = (Part(1.0, DPO()), Part(0.2, SFT()))

    name: ClassVar[str] = "weighted_sum"
    coupled: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "parts", self.parts, "at least one objective")
        for i, part in enumerate(self.parts):
            require(math.isfinite(part.weight), f"parts.{i}.weight", part.weight, "a finite number")
        reduce(or_, (part.objective.needs for part in self.parts))

    @property
    def needs(self) -> Needs:
        return reduce(or_, (part.objective.needs for part in self.parts))

    def initial_state(self, seed: int) -> State:
        states = [part.objective.initial_state(seed) for part in self.parts]
        return {f"{i}/{key}": value for i, state in enumerate(states) for key, value in state.items()}

    def fit(self, reference: Tensor, groups: Groups, state: State) -> State:
        new_state = dict(state)
        for i, part in enumerate(self.parts):
            if isinstance(part.objective, FittedObjective):
                part_state = part.objective.fit(reference, groups, _state_of_part(state, i))
                new_state.update({f"{i}/{key}": value for key, value in part_state.items()})
        return new_state

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        outputs, new_state = [], {}
        for i, part in enumerate(self.parts):
            output, part_state = part.objective(policy, reference, groups, _state_of_part(state, i))
            outputs.append(output)
            new_state.update({f"{i}/{key}": value for key, value in part_state.items()})
        return self._sum(outputs, policy), new_state

    def evaluate(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> Output:
        outputs = [
            part.objective.evaluate(policy, reference, groups, _state_of_part(state, i))
            for i, part in enumerate(self.parts)
        ]
        return self._sum(outputs, policy)

    def _sum(self, outputs: list[Output], policy: Tensor) -> Output:
        losses = torch.zeros_like(policy[:, 0])
        metrics: dict[str, Sum] = {}
        for part, output in zip(self.parts, outputs, strict=True):
            loss = output.loss
            # Each group's share of the part's mean; times G, so that the mean over G groups is the sum of means.
            share = output.losses * output.weights / loss.count.clamp(min=1e-30) * len(losses)
            losses = losses + part.weight * share
            detached = Sum(loss.total.detach(), loss.count)
            metrics = {**output.metrics, **metrics}
            metrics.setdefault(f"{part.objective.name}/loss", detached)
        return Output(losses, torch.ones_like(losses), metrics)


def _state_of_part(state: State, i: int) -> State:
    """The state of part i, by the names that the part uses."""
    return {key.split("/", 1)[1]: value for key, value in state.items() if key.startswith(f"{i}/")}
