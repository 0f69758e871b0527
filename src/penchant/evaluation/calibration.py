"""Calibration of the preference probabilities that implicit rewards imply.

Legend: P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.evaluation.statistics import Estimate, Floats, Ints, mean_of_shares

_BINS = 10
_SIMULATIONS = 200
"""Number of simulated outcome sets; the standard error of the simulated mean is then below a tenth of it."""


@dataclass(frozen=True)
class CalibrationBin:
    """Statistics of pairs with similar predicted probability.

    Attributes:
        predicted: mean probability that the response with the higher reward is the preferred one.
        observed: share of pairs in which it is.
    """

    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """Bradley-Terry probabilities of rewards against the data, in bins of equal count.

    Attributes:
        beta: scale of the rewards.
        bins: bins in order of rising confidence.
        expected_calibration_error: mean over pairs of |predicted - observed| of the pair's bin (Guo et al. 2017,
            arXiv 1706.04599, equation 3). It has no interval: resampling biases it upwards.
        calibrated_error: mean of this error over simulations whose outcomes follow the predicted probabilities: the
            error that chance alone gives. NaN without pairs.
    """

    beta: float
    bins: tuple[CalibrationBin, ...]
    expected_calibration_error: Estimate
    calibrated_error: float

    @property
    def definition(self) -> str:
        return (
            f"sigmoid(|reward difference|), reward = {self.beta:g} x log-ratio, against how often the response with "
            f"the higher reward is preferred (equal rewards: half), over pairs in {len(self.bins)} bins of equal count"
        )

    def to_json(self) -> dict[str, Any]:
        bins = [{"predicted": row.predicted, "observed": row.observed.to_json()} for row in self.bins]
        error = self.expected_calibration_error.to_json()
        chance = None if math.isnan(self.calibrated_error) else self.calibrated_error
        return {"beta": self.beta, "expected_calibration_error": error, "calibrated_error": chance, "bins": bins}


def calibrate(log_ratio_margins: Floats, clusters: Ints, beta: float, *, seed: int) -> Calibration:
    """Calibration of sigmoid(|beta h|) as the probability that the response with the higher score is preferred.

    Args:
        log_ratio_margins: [P] h, chosen minus rejected log-ratio, nats.
        clusters: [P] integers; pairs with equal ones are not independent.
    """
    predicted = 1 / (1 + np.exp(-np.abs(beta * log_ratio_margins)))
    won = np.where(log_ratio_margins == 0, 0.5, log_ratio_margins > 0)
    parts = [part for part in np.array_split(np.lexsort((clusters, predicted)), _BINS) if len(part)]
    shared = _shared_outcomes(predicted, won)
    bins = [
        CalibrationBin(
            float(predicted[part].mean()),
            # Not `bootstrap_mean`: a bin of equally confident pairs, which share one rate, would be certain of it.
            mean_of_shares(shared[part], clusters[part]),
        )
        for part in parts
    ]
    generator = np.random.default_rng(seed)
    # Draws belong to pairs by their rank, so that the order of the rows does not change them.
    tied = log_ratio_margins == 0
    ranks = np.argsort(np.lexsort((tied, predicted)))
    errors = []
    for _ in range(_SIMULATIONS):
        outcomes = np.where(tied, 0.5, generator.random(len(predicted))[ranks] < predicted)
        errors.append(_error(predicted, _shared_outcomes(predicted, outcomes), parts))
    n = len(predicted)
    error = Estimate(_error(predicted, shared, parts), math.nan, math.nan, n)
    return Calibration(beta, tuple(bins), error, float(np.mean(errors)))


def _shared_outcomes(predicted: Floats, won: Floats) -> Floats:
    """[P] outcomes averaged over pairs of equal probability, so that a bin's edge may fall between them."""
    _, level, count = np.unique(predicted, return_inverse=True, return_counts=True)
    return (np.bincount(level, weights=won) / count)[level] if len(level) else won


def _error(predicted: Floats, observed: Floats, parts: Sequence[Ints]) -> float:
    """Expected calibration error of [P] predictions and [P] outcomes in bins of pair indices; NaN without pairs."""
    gaps = [len(part) * abs(float(predicted[part].mean() - observed[part].mean())) for part in parts]
    return sum(gaps) / len(predicted) if len(predicted) else math.nan
