"""What is left of a win rate where both answers are equally long.

Judges prefer longer answers. After Dubois et al. 2024 (AlpacaEval 2, section 3), without their term for each prompt's
difficulty: a win's probability is ``sigmoid(theta + phi tanh(d / s))``, with d the difference of the answers' lengths
and s its standard deviation; the controlled rate is ``sigmoid(theta)``, at a difference of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from penchant.evaluation.statistics import Estimate

Floats = NDArray[np.float64]

RIDGE = 0.01
"""Of the squared coefficients, times the number of prompts: a rate stays off 0 and 1 where all are won."""


def length_controlled(
    values: Sequence[float],
    ours: Sequence[int],
    theirs: Sequence[int],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """The controlled rate, with a percentile interval over prompts.

    Args:
        values: of each prompt 1 for a win, 0 for a loss, 1/2 for a tie.
        ours, theirs: words of the answers.
    """
    wins, difference = np.asarray(values, np.float64), np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    n = len(wins)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    spread = float(difference.std())
    longer = np.tanh(difference / spread) if spread > 0 else np.zeros(n)
    found = _rate(wins, longer, np.ones(n))
    if n == 1:
        return Estimate(found, math.nan, math.nan, n)
    draw = np.random.default_rng(seed)
    drawn = (np.bincount(draw.integers(n, size=n), minlength=n).astype(np.float64) for _ in range(resamples))
    rates = [_rate(wins, longer, weights) for weights in drawn]
    low, high = np.quantile(rates, (0.025, 0.975))
    return Estimate(found, float(low), float(high), n)


def _rate(wins: Floats, longer: Floats, weights: Floats) -> float:
    """sigmoid(theta) of the weighted, slightly ridged maximum of the likelihood, by Newton's method."""
    inputs = np.stack([np.ones_like(longer), longer], 1)
    ridge = RIDGE * weights.sum() * np.eye(2)
    at = np.zeros(2)
    for _ in range(50):
        said = 1 / (1 + np.exp(-inputs @ at))
        gradient = inputs.T @ (weights * (wins - said)) - ridge @ at
        curvature = (inputs * (weights * said * (1 - said))[:, None]).T @ inputs + ridge
        step = np.linalg.solve(curvature, gradient)
        at = at + step
        if np.abs(step).max() < 1e-10:
            break
    return float(1 / (1 + np.exp(-at[0])))
