"""What is left of a win rate where both answers are equally long.

Judges prefer longer answers. After Dubois et al. 2024 (AlpacaEval 2, section 3): a win's probability is
``sigmoid(theta + phi tanh(d / s))``, with d the difference of the answers' lengths and s its standard deviation; the
controlled rate is ``sigmoid(theta)``, at a difference of 0. Two things differ from theirs.

Their term for each instruction's difficulty is left out: its values are fitted over the hundred models of their leader
board, and a comparison of two models' answers to a user's prompts has nothing to fit them from.

Where they penalise by cross-validation, a weak prior of fixed width is on phi alone. It keeps phi finite where the
longer answer always wins, and pulls theta nowhere: at equal lengths the controlled rate is the raw one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from penchant.evaluation.statistics import Estimate, Floats
from penchant.intervals.shares import pseudo_interval
from penchant.intervals.student_t import critical_value

PRECISION = 0.1
"""Of the normal prior on phi around 0: its standard deviation is 3.2 in log-odds, whatever the number of prompts."""

_TOLERANCE, _STEPS = 1e-10, 100


def length_controlled(values: Sequence[float], words: Sequence[int], rival_words: Sequence[int]) -> Estimate:
    """The controlled rate with a 95 % interval over prompts.

    The interval is that of a share whose sample is as large as gives theta's variance, by the model and by how the
    residuals differ from it (as ties do; the sandwich of White 1982).

    Args:
        values: 1 for a prompt won, 0 for one lost, 1/2 for a tie.
        words, rival_words: lengths of the answers, ours and the rival's.
    """
    wins, difference = (
        np.asarray(values, np.float64),
        np.asarray(words, np.float64) - np.asarray(rival_words, np.float64),
    )
    n = len(wins)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    spread = float(difference.std())
    longer = np.tanh(difference / spread) if spread > 0 else np.zeros(n)
    raw = float(wins.mean())
    if raw in (0.0, 1.0):  # No theta is large enough.
        rate, sample, square = raw, float(n), raw
    else:
        rate, sample, square = _controlled(wins, np.stack([np.ones(n), longer], 1))
    freedom = n - (2 if spread > 0 else 1)
    if freedom < 1:
        return Estimate(rate, math.nan, math.nan, n)
    low, high = pseudo_interval(rate, square, sample, critical_value(0.05, freedom))
    return Estimate(rate, low, high, n)


def _controlled(wins: Floats, inputs: Floats) -> tuple[float, float, float]:
    """The rate at equal lengths, the independent prompts its variance is worth, and the mean square of such a prompt.

    Args:
        wins: [N], not all 0 and not all 1.
        inputs: [N, 2] ones, and the squashed differences of length.
    """
    theta, curvature = _fit(wins, inputs)
    inverse = np.linalg.inv(curvature)
    rate = float(_sigmoid(theta[0]))
    residuals = inputs * (wins - _sigmoid(inputs @ theta))[:, None]
    by_residuals = float((inverse @ (residuals.T @ residuals) @ inverse)[0, 0])
    by_model = float(inverse[0, 0])
    variance = rate * (1 - rate)
    return rate, 1 / (variance * by_model), rate**2 + variance * by_residuals / by_model


def _fit(wins: Floats, inputs: Floats) -> tuple[Floats, Floats]:
    """[2] coefficients of the largest posterior, by Newton's method with halved steps, and [2, 2] its curvature."""
    precision = np.diag([0.0, PRECISION])
    mean = wins.mean()
    theta = np.array([math.log(mean / (1 - mean)), 0.0])
    loss = _loss(theta, wins, inputs)
    for _ in range(_STEPS):
        chance = _sigmoid(inputs @ theta)
        gradient = inputs.T @ (chance - wins) + precision @ theta
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + precision
        step = np.linalg.solve(curvature, gradient)
        if np.abs(step).max() < _TOLERANCE:
            break
        while (shorter := _loss(theta - step, wins, inputs)) > loss + 1e-12 * abs(loss):
            step = step / 2
        theta, loss = theta - step, shorter
    return theta, curvature


def _loss(theta: Floats, wins: Floats, inputs: Floats) -> float:
    """Negative log-posterior, nats."""
    logits = inputs @ theta
    return float((np.logaddexp(0, logits) - wins * logits).sum() + PRECISION * theta[1] ** 2 / 2)


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))
