"""The metrics by which tasks of GLUE are published (Wang et al. 2018, arXiv 1804.07461, section 3 and table 1).

Legend: Q questions, B resamples. A metric is a function of weights [B, Q], how often each question counts in each
resample, so that resamples are products of matrices; weights of one give the metric itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
OfWeights = Callable[[Floats], Floats]
"""Function from weights [B, Q] to the metric's value [B] in every resample."""


@dataclass(frozen=True)
class Metric:
    """One metric of a task.

    Attributes:
        definition: what it is, for people.
        of_weights: function from [Q] predicted and [Q] true values to a function of weights.
        chance: function from [Q] true values to what uniform guesses come to, in expected counts.
    """

    definition: str
    of_weights: Callable[[Floats, Floats], OfWeights]
    chance: Callable[[Floats], float]


def matthews(predicted: Floats, true: Floats) -> OfWeights:
    """Matthews' correlation of two classes, 0 and 1; 0 where one of the four margins is empty."""
    cells = _cells(predicted, true)

    def of_weights(weights: Floats) -> Floats:
        both, only_predicted, only_true, true_negatives = (weights @ cell for cell in cells)
        margins = (
            (both + only_predicted)
            * (both + only_true)
            * (true_negatives + only_predicted)
            * (true_negatives + only_true)
        )
        return _ratio(both * true_negatives - only_predicted * only_true, np.sqrt(margins))

    return of_weights


def f1(predicted: Floats, true: Floats) -> OfWeights:
    """F1 of class 1, ``2 tp / (2 tp + fp + fn)``; 0 where no question has it."""
    both, only_predicted, only_true, _ = _cells(predicted, true)

    def of_weights(weights: Floats) -> Floats:
        hits = 2 * (weights @ both)
        return _ratio(hits, hits + weights @ only_predicted + weights @ only_true)

    return of_weights


def accuracy(predicted: Floats, true: Floats) -> OfWeights:
    """Share of predictions that are the true value."""
    right = (predicted == true).astype(np.float64)
    return lambda weights: _ratio(weights @ right, weights.sum(1))


def pearson(predicted: Floats, true: Floats) -> OfWeights:
    """Pearson's correlation; 0 where one of the two does not vary."""

    def of_weights(weights: Floats) -> Floats:
        rows = (len(weights), 1)
        return _correlation(weights, np.tile(predicted, rows), np.tile(true, rows))

    return of_weights


def spearman(predicted: Floats, true: Floats) -> OfWeights:
    """Spearman's correlation: Pearson's of the ranks within each resample, with the mean rank of equal values."""
    _, predicted_level = np.unique(predicted, return_inverse=True)
    _, true_level = np.unique(true, return_inverse=True)
    return lambda weights: _correlation(
        weights, _mean_ranks(weights, predicted_level), _mean_ranks(weights, true_level)
    )


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric("share of questions whose right option scores highest", accuracy, lambda true: 0.5),
    "matthews": Metric("Matthews' correlation of the chosen and the true class", matthews, lambda true: 0.0),
    "f1": Metric(
        "F1 of the class yes", f1, lambda true: float(true.mean() / (true.mean() + 0.5)) if len(true) else 0.0
    ),
    "pearson": Metric("Pearson's correlation of the chosen and the true number", pearson, lambda true: 0.0),
    "spearman": Metric("Spearman's correlation of the chosen and the true number", spearman, lambda true: 0.0),
}
"""Metrics by name. Chance of accuracy is of two classes, which the tasks here have."""

OFFICIAL: Mapping[str, tuple[str, ...]] = {
    "cola": ("matthews",),
    "mrpc": ("accuracy", "f1"),
    "qqp": ("accuracy", "f1"),
    "stsb": ("pearson", "spearman"),
}
"""The metrics of a task whose mean is its published number; of every other task it is the accuracy."""


def mean_of(names: Sequence[str], predicted: Floats, true: Floats) -> OfWeights:
    """The unweighted mean of several metrics."""
    functions = [METRICS[name].of_weights(predicted, true) for name in names]

    def of_weights(weights: Floats) -> Floats:
        mean: Floats = np.mean([function(weights) for function in functions], axis=0)
        return mean

    return of_weights


def _cells(predicted: Floats, true: Floats) -> tuple[Floats, ...]:
    """[Q] indicators of the four cells: class 1 in both, predicted only, true only, neither."""
    yes, really = predicted == 1, true == 1
    return tuple(cell.astype(np.float64) for cell in (yes & really, yes & ~really, ~yes & really, ~yes & ~really))


def _mean_ranks(weights: Floats, level: npt.NDArray[np.intp]) -> Floats:
    """[B, Q] mean rank of every question's value among a resample's, from the index of its value in ascending order."""
    counts = np.zeros((len(weights), int(level.max()) + 1))
    np.add.at(counts.T, level, weights.T)
    ranks: Floats = (np.cumsum(counts, axis=1) - (counts - 1) / 2)[:, level]
    return ranks


def _correlation(weights: Floats, x: Floats, y: Floats) -> Floats:
    """[B] weighted correlation of [B, Q] values."""
    total = weights.sum(1, keepdims=True)
    x_centred, y_centred = (values - (weights * values).sum(1, keepdims=True) / total for values in (x, y))
    x_square, y_square = ((weights * values**2).sum(1) for values in (x_centred, y_centred))
    return _ratio((weights * x_centred * y_centred).sum(1), np.sqrt(x_square * y_square))


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient; 0 where the denominator is 0 but for rounding."""
    zero = denominator <= 1e-12
    ratio: Floats = np.where(zero, 0.0, numerator / np.where(zero, 1.0, denominator))
    return ratio
