"""Which learner is served after an update: the one that is, unless a paired test says that another is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

_DIFFERING = 0.4
"""Share of answers on which two learners are assumed to differ, to foretell what is found."""


def better_p(candidate: Sequence[float], served: Sequence[float], answers: int) -> float:
    """One-sided p-value that a candidate satisfies more often: Fisher's randomisation test over prompts, exact.

    The share of all ways to turn the signs of the prompts' differences whose sum is no smaller; 1 where there is none.

    Args:
        candidate, served: [N] of each prompt the share of its answers that satisfied.
        answers: to a prompt, by the same draws for both.
    """
    differences = np.rint((np.asarray(candidate) - np.asarray(served)) * answers).astype(np.int64)
    sizes = np.abs(differences[differences != 0])
    total = int(sizes.sum())
    # Probability of each sum of signed differences, from -total to total, one prompt after the other.
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes.tolist():
        turned = np.zeros_like(chances)
        turned[size:] += chances[:-size]
        turned[:-size] += chances[size:]
        chances = turned / 2
    return min(1.0, float(chances[total + int(differences.sum()) :].sum()))


def choose(
    satisfied: Mapping[int, Sequence[float]], served: int, answers: int, error: float
) -> tuple[int, dict[int, float]]:
    """The learner to serve, and each other learner's p-value against the one that is served.

    A learner that is no better than the served one replaces it with probability `error` at most: the others share it
    equally. Of several that pass, the one with the most satisfied answers is served, of equals the newest.

    Args:
        satisfied: of each learner, by its update, [N] the share of a prompt's answers that satisfied.
        served: the update whose learner is served.
    """
    p_values = {
        update: better_p(shares, satisfied[served], answers) for update, shares in satisfied.items() if update != served
    }
    passing = [update for update, p in p_values.items() if p <= error / len(p_values)]
    best = max(passing, key=lambda update: (float(np.mean(satisfied[update])), update), default=served)
    return best, p_values


def findable_gain(prompts: int, answers: int, error: float) -> float | None:
    """How much more often a learner has to satisfy to pass 8 times in 10, about; None where nothing could pass."""
    if 0.5**prompts > error:
        return None
    quantiles = NormalDist().inv_cdf(1 - error) + NormalDist().inv_cdf(0.8)
    return quantiles * math.sqrt(_DIFFERING / (prompts * answers))
