"""Estimates with intervals over whole clusters: shares, the area under the ROC curve, and a bootstrap for other means.

Legend: N values, C clusters (prompts), B resamples in a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from penchant.errors import ModelError
from penchant.intervals import Bounds, clustered_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_BLOCK = 1 << 20
"""Elements of the largest array of a block of resamples; 8 MiB."""


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the estimate; NaN where there is nothing to estimate it from.
        low, high: bounds of the interval; NaN where there is none.
        n: how many observations the value is made of.
    """

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """``{"value", "low", "high", "n"}``, with None for NaN."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{name: None if math.isnan(number) else number for name, number in numbers.items()}, "n": self.n}


def require_finite(values: Iterable[float], name: str, where: str) -> None:
    """Check that a model's numbers are finite.

    Args:
        name: what the numbers are and what their index counts, as in ``the reward of candidate``.

    Raises:
        ModelError: a number is not finite.
    """
    for k, value in enumerate(values):
        if not math.isfinite(value):
            raise ModelError(
                f"{name} {k} is {value}, expected a finite number",
                where=where,
                fix="read it in training.dtype=float32; if it stays so, the model's weights are damaged",
            )


def roc_auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Probability that a random positive scores above a random negative, a tie counting half; NaN if either is empty.

    The Mann-Whitney statistic (Hanley and McNeil 1982, section III) in O(n log n).

    Args:
        positive, negative: [N], [M] scores.
    """
    positives, negatives = np.asarray(positive, dtype=np.float64), np.sort(np.asarray(negative, dtype=np.float64))
    if not len(positives) or not len(negatives):
        return math.nan
    wins = np.searchsorted(negatives, positives, side="left") + np.searchsorted(negatives, positives, side="right")
    return float(wins.sum() / (2 * len(positives) * len(negatives)))


def proportion(successes: int, n: int) -> Estimate:
    """A share of independent trials with a 95 % interval that has a width even if all or none succeed."""
    outcomes = np.repeat((1.0, 0.0), (successes, n - successes))
    return mean_of_shares(outcomes, np.arange(n))


def mean_of_shares(values: ArrayLike, clusters: ArrayLike) -> Estimate:
    """The mean of values in [0, 1] (yes or no, wins with ties at 1/2, F1) with a 95 % interval inside [0, 1].

    Agresti and Coull 1998 (Wilson's centre): with t the quantile, t² pseudo-observations more, half of them 0 and half
    1, so that 20 of 20 right does not mean certainty. For clusters the sample counts as many observations as give the
    variance its clusters show (Korn and Graubard 1998), all of one outcome as many as there are clusters; t has one
    degree of freedom less than there are clusters.

    Args:
        values: [N].
        clusters: [N] integers; equal ones are not independent. One cluster alone gives no interval.
    """
    return _with_pseudo_observations(values, clusters, bounds=(0.0, 1.0), weight=1.0)


def difference_of_shares(ours: ArrayLike, baseline: ArrayLike, clusters: ArrayLike) -> Estimate:
    """The mean of paired differences of values in [0, 1], with a 95 % interval that is valid even if few pairs differ.

    Agresti and Min 2005: half as many pseudo-observations as for a share, a quarter 1, a quarter -1, the rest 0.

    Args:
        ours, baseline: [N].
        clusters: [N] integers, as for `mean_of_shares`.
    """
    values = np.asarray(ours, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    return _with_pseudo_observations(values, clusters, bounds=(-1.0, 1.0), weight=0.5)


def _with_pseudo_observations(values: ArrayLike, clusters: ArrayLike, bounds: Bounds, weight: float) -> Estimate:
    """The mean of [N] values with an interval from pseudo-observations at the bounds, over [N] clusters."""
    numbers = np.asarray(values, dtype=np.float64)
    n = len(numbers)
    if not n:
        return Estimate(math.nan, math.nan, math.nan, 0)
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    # Sums are rounded by their order: in this one they do not depend on the caller's.
    order = np.lexsort((numbers, inverse))
    numbers, inverse = numbers[order], inverse[order]
    mean, square = float(numbers.mean()), float((numbers**2).mean())
    deviations = np.bincount(inverse, weights=numbers - mean).astype(np.float64)
    low, high = clustered_interval(mean, square, deviations, np.bincount(inverse), bounds=bounds, weight=weight)
    return Estimate(mean, low, high, n)


def bootstrap_mean(values: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of values that may be shares, with an interval over clusters.

    Values in [0, 1] of which some are 0 or 1, or all are ties at 1/2, have the interval of `mean_of_shares`: resamples
    of twenty ones are all ones. Others have that of `resampled_mean`: values that stay off the bounds, as of BERTScore,
    differ too little for pseudo-observations at the bounds.

    Args:
        values: [N].
        clusters: [N] integers; equal ones are drawn together.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) and are_shares(numbers):
        return mean_of_shares(numbers, clusters)
    return resampled_mean(numbers, clusters, resamples=resamples, seed=seed)


def resampled_mean(values: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of values without bounds, such as margins, with a percentile interval over resampled clusters.

    In a resample the mean is the sum of the drawn clusters' values over their number of values, so that clusters may
    differ in size. See Efron and Tibshirani 1993, section 13.3; Cameron, Gelbach and Miller 2008 for clusters.

    Args:
        values: [N].
        clusters: [N] integers; equal ones are drawn together.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers):
        return Estimate(math.nan, math.nan, math.nan, 0)
    _, inverse, sizes = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=numbers)
    blocks = [draws @ sums / (draws @ sizes) for draws in _draws(len(sizes), len(sizes), resamples, seed)]
    return _estimate(float(numbers.mean()), blocks, len(numbers))


def are_shares(numbers: Floats) -> bool:
    """Whether [N] values are in [0, 1], and some are 0 or 1 or all are 1/2."""
    low, high = float(numbers.min()), float(numbers.max())
    return (low == 0 and high <= 1) or (low >= 0 and high == 1) or low == high == 0.5


def bootstrap_ratio(
    numerators: ArrayLike, denominators: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """The ratio of two sums over the same observations, with a percentile interval over clusters drawn together.

    The ratio is NaN if the denominators sum to 0; a single such resample makes the interval NaN.

    Args:
        numerators, denominators: [N].
        clusters: [N] integers; equal ones are drawn together.
    """
    upper, lower = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if not len(upper) or lower.sum() == 0:
        return Estimate(math.nan, math.nan, math.nan, len(upper))
    _, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    sums = [np.bincount(inverse, weights=values) for values in (upper, lower)]
    with np.errstate(divide="ignore", invalid="ignore"):
        blocks = [
            (draws @ sums[0]) / (draws @ sums[1]) for draws in _draws(len(sums[0]), len(sums[0]), resamples, seed)
        ]
    return _estimate(float(upper.sum() / lower.sum()), blocks, len(upper))


def bootstrap_auc(
    positive: ArrayLike, negative: ArrayLike, clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """ROC-AUC of pooled scores with a percentile interval over clusters drawn with replacement.

    Args:
        positive, negative: [N] scores of the two members of each pair.
        clusters: [N] integers; pairs with equal ones are drawn together.
    """
    positives, negatives = np.asarray(positive, dtype=np.float64), np.asarray(negative, dtype=np.float64)
    if len(positives) != len(negatives):
        raise ValueError(f"{len(positives)} positive scores but {len(negatives)} negative ones: they come in pairs")
    if not len(positives):
        return Estimate(math.nan, math.nan, math.nan, 0)
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    auc = roc_auc(positives, negatives)
    if auc in (0.0, 1.0) and len(names) > 1:
        # It is the same in every resample, so the interval is that of as many wins or losses as there are clusters.
        certain = proportion(round(auc) * len(names), len(names))
        return Estimate(auc, certain.low, certain.high, len(positives))
    aucs = _WeightedAuc.from_scores(positives, negatives)
    blocks = [aucs(draws[:, inverse]) for draws in _draws(len(names), len(inverse), resamples, seed)]
    return _estimate(auc, blocks, len(positives))


def bootstrap_weighted(
    statistic: Callable[[Floats], Floats], clusters: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """A statistic of weighted observations with a percentile interval over clusters drawn with replacement.

    Args:
        statistic: function from [B, N] weights, how often each observation counts, to [B] values.
        clusters: [N] integers; equal ones are drawn together.
    """
    names, inverse = np.unique(np.asarray(clusters), return_inverse=True)
    value = float(statistic(np.ones((1, len(inverse))))[0])
    blocks = [statistic(draws[:, inverse]) for draws in _draws(len(names), len(inverse), resamples, seed)]
    return _estimate(value, blocks, len(inverse))


@dataclass(frozen=True)
class _WeightedAuc:
    """ROC-AUC of N pairs for any weights of the pairs: sorted once, then O(N) for each weighting.

    Attributes:
        by_positive: [N] indices of the pairs in the order of their positive scores: look-ups walk through memory.
        by_negative: [N] indices of the pairs in the order of their negative scores.
        fewer: [N] number of negatives below the positive, in the order of the positives.
        through: [N] number of negatives below or equal to it.
    """

    by_positive: Ints
    by_negative: Ints
    fewer: Ints
    through: Ints

    @classmethod
    def from_scores(cls, positive: Floats, negative: Floats) -> _WeightedAuc:
        """The sorted form of [N] positive and [N] negative scores."""
        by_positive, by_negative = np.argsort(positive), np.argsort(negative)
        ends = (np.searchsorted(negative[by_negative], positive[by_positive], side=side) for side in ("left", "right"))
        return cls(by_positive, by_negative, *ends)

    def __call__(self, weights: NDArray[np.float64]) -> Floats:
        """[B] areas for [B, N] weights of the pairs."""
        lower = np.zeros((len(weights), weights.shape[1] + 1))
        np.cumsum(weights[:, self.by_negative], axis=1, out=lower[:, 1:])
        wins = lower[:, self.fewer]
        wins += lower[:, self.through]
        # One product per row: the weights are whole numbers, so the sums are exact.
        return np.einsum("bn,bn->b", wins, weights[:, self.by_positive]) / (2 * lower[:, -1] ** 2)


def _draws(clusters: int, width: int, resamples: int, seed: int) -> Iterator[Floats]:
    """[B, C] counts of clusters in resamples, in blocks whose rows of `width` elements fit `_BLOCK`."""
    if clusters < 2:
        return
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // width)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        clusters_drawn = generator.integers(clusters, size=(rows, clusters)) + clusters * np.arange(rows)[:, None]
        yield np.bincount(clusters_drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(np.float64)


def _estimate(value: float, blocks: list[Floats], n: int) -> Estimate:
    """The estimate with the percentile interval of blocks of [B] resampled values."""
    # A single cluster does not show how clusters differ: no interval rather than one of width 0.
    if not blocks:
        return Estimate(value, math.nan, math.nan, n)
    low, high = np.quantile(np.concatenate(blocks), (0.025, 0.975))
    return Estimate(value, float(low), float(high), n)
