"""Whether the probabilities that implicit rewards stand for come true.

Legend: P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.evaluation.statistics import Estimate, Floats, Ints, bootstrap_mean

_BINS = 10


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs of like confidence.

    Attributes:
        predicted: mean probability that the response with the higher reward is the preferred one.
        observed: how often it is.
    """

    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """Bradley-Terry probabilities of rewards against the data, in bins of equal count.

    Attributes:
        beta: scale of the rewards.
        bins: from the least to the most confident.
        expected_calibration_error: mean over pairs of |predicted - observed| of the pair's bin (Guo et al. 2017,
            arXiv 1706.04599, equation 3). It has no interval: resampling biases it upwards.
    """

    beta: float
    bins: tuple[CalibrationBin, ...]
    expected_calibration_error: Estimate

    @property
    def definition(self) -> str:
        return (
            f"sigmoid(|reward difference|), reward = {self.beta:g} x log-ratio, against how often the response with "
            f"the higher reward is preferred (equal rewards: half), over pairs in {len(self.bins)} bins of equal count"
        )

    def to_json(self) -> dict[str, Any]:
        bins = [{"predicted": each.predicted, "observed": each.observed.to_json()} for each in self.bins]
        error = self.expected_calibration_error.to_json()
        return {"beta": self.beta, "expected_calibration_error": error, "bins": bins}


def calibrate(log_ratio_margins: Floats, clusters: Ints, beta: float, *, resamples: int, seed: int) -> Calibration:
    """Calibration of sigmoid(|beta h|) as the probability that the higher-scored response is preferred.

    Args:
        log_ratio_margins: [P] h, chosen minus rejected log-ratio, nats.
        clusters: [P] integers; pairs with equal ones are drawn together for the intervals.
    """
    predicted = 1 / (1 + np.exp(-np.abs(beta * log_ratio_margins)))
    won = np.where(log_ratio_margins == 0, 0.5, log_ratio_margins > 0)
    # Equally confident pairs share their outcomes, so that it does not matter which of them a bin's edge parts.
    _, level, count = np.unique(predicted, return_inverse=True, return_counts=True)
    shared = (np.bincount(level, weights=won) / count)[level] if len(level) else won
    bins, error = [], 0.0
    for part in np.array_split(np.lexsort((clusters, predicted)), _BINS):
        if len(part):
            observed = bootstrap_mean(shared[part], clusters[part], resamples=resamples, seed=seed)
            bins.append(CalibrationBin(float(predicted[part].mean()), observed))
            error += len(part) * abs(bins[-1].predicted - observed.value)
    n = len(predicted)
    return Calibration(beta, tuple(bins), Estimate(error / n if n else math.nan, math.nan, math.nan, n))
