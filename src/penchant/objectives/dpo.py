"""Direct Preference Optimization (Rafailov et al. 2023, arXiv 2305.18290)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from penchant.objectives.base import Groups, Output, State
from penchant.objectives.pairs import Average, average_pairs, differences, pair_metrics


@dataclass(frozen=True)
class DPO:
    """``L = -log sigma(beta h)``, ``h = Delta(y_w) - Delta(y_l)``, ``Delta = log pi - log ref`` (equation 7).

    At pi == ref the loss is ln 2. A group with K > 2 candidates has a loss for each pair of which one is preferred.

    Differs from TRL: K may exceed 2, and ties are counted (`rewards/ties`) instead of passing as errors.

    Attributes:
        beta: strength of the pull towards the reference, > 0; 0.1 in the paper, 0.5 for summaries.
        average: over ``groups`` (each prompt weighs the same) or ``pairs`` (each comparison does); equal at K = 2.
    """

    beta: float = 0.1
    average: Average = "groups"

    name: ClassVar[str] = "dpo"
    references: ClassVar[int] = 1
    min_candidates: ClassVar[int] = 2
    needs_pairs: ClassVar[bool] = True
    coupled: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}, expected a number above 0")
        if self.average not in ("groups", "pairs"):
            raise ValueError(f"average is {self.average!r}, expected 'groups' or 'pairs'")

    def initial_state(self) -> State:
        return {}

    def __call__(self, policy: Tensor, reference: Tensor, groups: Groups, state: State) -> tuple[Output, State]:
        rewards = self.beta * torch.where(groups.mask, policy - reference[0], 0.0)
        losses, weights = average_pairs(-logsigmoid(differences(rewards, groups.better)), groups, self.average)
        return Output(losses, weights, pair_metrics(rewards, policy, groups)), state
