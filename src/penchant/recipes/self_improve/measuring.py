"""How good a learner is on prompts it is never tuned on, and whether it collapses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.recipes.self_improve.medium import Medium, Signs
from penchant.recipes.self_improve.verifying import Verifier


@dataclass(frozen=True)
class Measured:
    """A learner's answers to some prompts.

    Attributes:
        satisfied: of each prompt 1 or 0.
        score: the mean of the verifier's.
    """

    answers: tuple[str, ...]
    satisfied: tuple[float, ...]
    score: float
    signs: Signs

    def to_json(self) -> dict[str, Any]:
        own = {"answers": list(self.answers), "satisfied": list(self.satisfied), "score": self.score}
        return own | vars(self.signs)


def measure(medium: Medium, model: str, first: str, prompts: Sequence[str], verifier: Verifier, seed: int) -> Measured:
    """One answer to each prompt, by the same draws whatever the learner.

    Args:
        first: the learner it all began with.
    """
    answers = medium.load(model)(prompts, seed)
    verdicts = verifier(prompts, answers)
    return Measured(
        tuple(answers),
        tuple(float(verdict.satisfied) for verdict in verdicts),
        float(np.mean([verdict.score for verdict in verdicts])),
        medium.signs(model, first, prompts, answers),
    )
