"""Evaluation of a learner on prompts it is never trained on: success, and signs of collapse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.errors import ConfigError
from penchant.recipes.self_improve.learner import answer_seed
from penchant.recipes.self_improve.medium import CollapseMetrics, LearnerBackend
from penchant.recipes.self_improve.verifying import Verifier

MAX_UNJUDGED_SHARE = 0.05
"""Maximum share of answers without a verdict; above it the evaluation is an error."""


@dataclass(frozen=True)
class LearnerMetrics:
    """Metrics of a learner's answers to some prompts.

    Attributes:
        answers: the first answer to each prompt.
        satisfied: share of satisfying answers by prompt; an answer without a verdict does not satisfy.
        score: mean of the verifier's scores.
        unjudged: number of answers without a verdict.
    """

    answers: tuple[str, ...]
    satisfied: tuple[float, ...]
    score: float
    unjudged: int
    collapse_metrics: CollapseMetrics

    def to_json(self) -> dict[str, Any]:
        values = {"answers": list(self.answers), "satisfied": list(self.satisfied)}
        return values | {"score": self.score, "unjudged": self.unjudged} | vars(self.collapse_metrics)


def evaluate_learner(
    backend: LearnerBackend,
    model: str,
    first_model: str,
    prompts: Sequence[str],
    verifier: Verifier,
    seed: int,
    answers_per_prompt: int = 1,
) -> LearnerMetrics:
    """Metrics of a learner's answers; the sampling seeds do not depend on the learner.

    Args:
        model: folder or hub id of the learner.
        first_model: the first learner, from which the distance is measured.
        answers_per_prompt: number of answers to each prompt.

    Raises:
        ConfigError: too many answers got no verdict, as when the verifier is down.
    """
    answer = backend.load(model)
    answers = [
        answer(prompts, [answer_seed(seed, "measured", turn, p) for p in prompts]) for turn in range(answers_per_prompt)
    ]
    verdicts = [verifier(prompts, turn_answers) for turn_answers in answers]
    unjudged, total = sum(verdict.failed for turn in verdicts for verdict in turn), answers_per_prompt * len(prompts)
    if unjudged > MAX_UNJUDGED_SHARE * total:
        raise ConfigError(
            f"the verifier gave no verdict on {unjudged} of {total} answers",
            fix="check that it is up, then run the recipe again",
        )
    return LearnerMetrics(
        tuple(answers[0]),
        tuple(np.mean([[verdict.satisfied for verdict in turn] for turn in verdicts], axis=0).tolist()),
        float(np.mean([[verdict.score for verdict in turn] for turn in verdicts])),
        unjudged,
        backend.collapse_metrics(model, first_model, prompts, answers[0]),
    )
