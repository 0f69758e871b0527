"""The gate: after an update the served learner stays, unless a paired test says that another learner is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from penchant.api import ConfigError, Text
from penchant.recipes.self_improve.config import LearnerConfig, SelfImproveConfig
from penchant.recipes.self_improve.learner import CollapseMetrics, LearnerBackend, answer_seed
from penchant.recipes.self_improve.verifying import Verifier, verifier_text

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
    prompts: Sequence[Text],
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
    answer, texts = backend.load(model), [verifier_text(prompt) for prompt in prompts]
    answers = [
        answer(prompts, [answer_seed(seed, "measured", turn, text) for text in texts])
        for turn in range(answers_per_prompt)
    ]
    verdicts = [verifier(texts, turn_answers) for turn_answers in answers]
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


_DIFFERING = 0.4
"""Assumed share of answers on which two learners differ, for `detectable_gain`."""


def randomisation_p_value(candidate: Sequence[float], served: Sequence[float], answers: int) -> float:
    """One-sided p-value that a candidate satisfies more often, by Fisher's exact randomisation test over prompts.

    It is the share of all sign flips of the prompts' differences whose sum is no smaller; 1 without differences.

    Args:
        candidate, served: [N] share of satisfying answers by prompt.
        answers: number of answers per prompt, sampled with the same seeds for both learners.
    """
    differences = np.rint((np.asarray(candidate) - np.asarray(served)) * answers).astype(np.int64)
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    # Probability of each sum of signed differences, from -total to total, one prompt after the other.
    probabilities = np.zeros(2 * total + 1)
    probabilities[total] = 1.0
    for size in sizes.tolist():
        shifted = np.zeros_like(probabilities)
        shifted[size:] += probabilities[:-size]
        shifted[:-size] += probabilities[size:]
        probabilities = shifted / 2
    return min(1.0, float(probabilities[total + int(differences.sum()) :].sum()))


def choose_served(
    satisfied: Mapping[int, Sequence[float]], served: int, answers: int, error: float
) -> tuple[int, dict[int, float]]:
    """The update whose learner is served from now on, and every other learner's p-value against the served one.

    The probability that a learner that is no better replaces the served one is at most `error`, shared equally by all
    others (Bonferroni). Of several that pass, the one with the most satisfying answers is served, the newest in a tie.

    Args:
        satisfied: [N] share of satisfying answers by prompt, for every learner by its update.
        served: the update whose learner is served now.
    """
    p_values = {
        update: randomisation_p_value(shares, satisfied[served], answers)
        for update, shares in satisfied.items()
        if update != served
    }
    passing = [update for update, p in p_values.items() if p <= error / len(p_values)]
    best = max(passing, key=lambda update: (float(np.mean(satisfied[update])), update), default=served)
    return best, p_values


def detectable_gain(prompts: int, answers: int, error: float) -> float | None:
    """The approximate gain in satisfying answers that passes the gate with power 0.8; None if nothing can pass."""
    if 0.5**prompts > error:
        return None
    quantiles = NormalDist().inv_cdf(1 - error) + NormalDist().inv_cdf(0.8)
    return quantiles * math.sqrt(_DIFFERING / (prompts * answers))


def gate_note(config: LearnerConfig, prompts: int) -> str:
    """A sentence on the gain that the gate can detect."""
    size = f"the gate: {prompts:,} prompts, {config.measured} answer{'s' * (config.measured > 1)} to each; "
    gain = detectable_gain(prompts, config.measured, config.gate_error)
    if gain is None:
        return f"{size}no update can pass at gate_error {config.gate_error:g}: give more prompts, or raise held_out"
    better = f"an update better by about {100 * gain:.0f} points passes 8 times in 10"
    return f"{size}{better}, and one no better with probability {config.gate_error:g} at most"


def stop_reason(config: SelfImproveConfig, rounds: Sequence[dict[str, Any]]) -> str | None:
    """Why the rounds stop early, if the gate rejected all updates of the last `patience` rounds with updates."""
    if config.patience is None or len(rounds) > config.rounds:
        return None
    rejected_rounds = 0
    for earlier, later in zip(rounds[-2::-1], rounds[:0:-1], strict=True):
        if earlier["served"] != later["served"]:
            break
        rejected_rounds += later["updates"] > earlier["updates"]
    if rejected_rounds < config.patience:
        return None
    last = f"stopped after round {rounds[-1]['round']}"
    return f"{last}: the gate kept what was served (rounds with updates since the last that passed: {rejected_rounds})"
