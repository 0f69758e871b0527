"""How good a learner is on prompts it is never tuned on, and whether it collapses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.errors import ConfigError
from penchant.recipes.self_improve.learner import number_of
from penchant.recipes.self_improve.medium import Medium, Signs
from penchant.recipes.self_improve.verifying import Verifier

UNJUDGED = 0.05
"""Share of answers without a verdict beyond which nothing is measured."""


@dataclass(frozen=True)
class Measured:
    """A learner's answers to some prompts.

    Attributes:
        answers: the first to each prompt.
        satisfied: of each prompt the share of its answers that satisfied; one without a verdict did not.
        score: the mean of the verifier's.
        unjudged: answers without a verdict.
    """

    answers: tuple[str, ...]
    satisfied: tuple[float, ...]
    score: float
    unjudged: int
    signs: Signs

    def to_json(self) -> dict[str, Any]:
        own = {"answers": list(self.answers), "satisfied": list(self.satisfied)}
        return own | {"score": self.score, "unjudged": self.unjudged} | vars(self.signs)


def measure(
    medium: Medium, model: str, first: str, prompts: Sequence[str], verifier: Verifier, seed: int, times: int = 1
) -> Measured:
    """Answers to each prompt, by the same draws whatever the learner.

    Args:
        first: the learner it all began with.
        times: how many answers to each.

    Raises:
        ConfigError: too many answers got no verdict: a verifier that is down would look like a learner that fails.
    """
    answer = medium.load(model)
    answers = [answer(prompts, [number_of(seed, "measured", turn, p) for p in prompts]) for turn in range(times)]
    verdicts = [verifier(prompts, told) for told in answers]
    unjudged, asked = sum(each.failed for turn in verdicts for each in turn), times * len(prompts)
    if unjudged > UNJUDGED * asked:
        raise ConfigError(
            f"the verifier gave no verdict on {unjudged} of {asked} answers", fix="check that it is up; then go on"
        )
    return Measured(
        tuple(answers[0]),
        tuple(np.mean([[each.satisfied for each in turn] for turn in verdicts], axis=0).tolist()),
        float(np.mean([[each.score for each in turn] for turn in verdicts])),
        unjudged,
        medium.signs(model, first, prompts, answers[0]),
    )
