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
        answers: the first to each prompt.
        satisfied: of each prompt the share of its answers that satisfied.
        score: the mean of the verifier's.
    """

    answers: tuple[str, ...]
    satisfied: tuple[float, ...]
    score: float
    signs: Signs

    def to_json(self) -> dict[str, Any]:
        own = {"answers": list(self.answers), "satisfied": list(self.satisfied), "score": self.score}
        return own | vars(self.signs)


def measure(
    medium: Medium, model: str, first: str, prompts: Sequence[str], verifier: Verifier, seed: int, times: int = 1
) -> Measured:
    """Answers to each prompt, by the same draws whatever the learner.

    Args:
        first: the learner it all began with.
        times: how many answers to each.
    """
    answer = medium.load(model)
    # Far from each other's seeds, and from those of rounds.
    answers = [answer(prompts, seed + turn * 10_000_019) for turn in range(times)]
    verdicts = [verifier(prompts, told) for told in answers]
    return Measured(
        tuple(answers[0]),
        tuple(np.mean([[each.satisfied for each in turn] for turn in verdicts], axis=0).tolist()),
        float(np.mean([[each.score for each in turn] for turn in verdicts])),
        medium.signs(model, first, prompts, answers[0]),
    )
