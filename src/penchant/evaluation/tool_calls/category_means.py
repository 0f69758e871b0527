"""Means of categories' shares of right answers, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from penchant.evaluation.statistics import Estimate


def macro_mean(categories: Sequence[Sequence[bool]]) -> Estimate:
    """The mean of the categories' shares, equally weighted, with the interval of `weighted_mean`.

    Args:
        categories: for every category whether each of its answers is right.
    """
    return weighted_mean(categories, [1.0] * len(categories), total=float(len(categories)))


def weighted_mean(categories: Sequence[Sequence[bool]], weights: Sequence[float], *, total: float) -> Estimate:
    """The weighted mean of the categories' shares with its 95 % interval, from the variance of independent shares.

    The variance of a share is that at its Wilson centre (Agresti and Coull 1998: two successes and two failures more),
    so that a category with only right answers does not count as certain.

    Args:
        categories: for every category whether each of its answers is right.
        weights: the weight of every category.
        total: the sum of all weights; more than that of `weights` if categories that are not here count as 0.
    """
    if not categories:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value, variance = 0.0, 0.0
    for category, weight in zip(categories, weights, strict=True):
        value += weight * (sum(category) / len(category))
        centre = (sum(category) + 2) / (len(category) + 4)
        variance += weight**2 * centre * (1 - centre) / (len(category) + 4)
    value, half = value / total, 1.959964 * math.sqrt(variance) / total
    return Estimate(value, max(0.0, value - half), min(sum(weights) / total, value + half), sum(map(len, categories)))
