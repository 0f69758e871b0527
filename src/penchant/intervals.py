"""Critical values of Student's t and Fisher's F, and the interval of a share over whole clusters.

The interval is Agresti and Coull's, with Student's quantile and an effective sample. Legend: C clusters (prompts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True)
class Mixture:
    """A variable that is Student t with `few` degrees of freedom by probability `share`, else with `many`."""

    share: float
    few: float
    many: float

    def two_sided_p(self, t: float) -> float:
        """Probability that the variable is at least `t` away from zero; t >= 0."""
        return self.share * two_sided_p(t, self.few) + (1 - self.share) * two_sided_p(t, self.many)

    def critical_value(self, level: float) -> float:
        """The t > 0 with `two_sided_p(t) == level`; 0 < level < 1."""
        low, high = sorted((critical_value(level, self.few), critical_value(level, self.many)))
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            if not low < middle < high:
                break
            low, high = (middle, high) if self.two_sided_p(middle) > level else (low, middle)
        return (low + high) / 2


def two_sided_p(t: float, df: float) -> float:
    """Probability that a Student t variable with `df` degrees of freedom is at least `t` away from zero; t >= 0."""
    return float(2 * special.stdtr(df, -t))


def critical_value(level: float, df: float) -> float:
    """The t > 0 with `two_sided_p(t, df) == level`; 0 < level < 1."""
    return float(-special.stdtrit(df, level / 2))


def f_tail(ratio: float, numerator_df: float, denominator_df: float) -> float:
    """Probability that a variable of Fisher's F distribution is at least `ratio`; ratio >= 0."""
    return float(special.fdtrc(numerator_df, denominator_df, ratio))


def critical_ratio(level: float, numerator_df: float, denominator_df: float) -> float:
    """The ratio with ``f_tail(ratio, numerator_df, denominator_df) == level``; 0 < level < 1.

    The tail is I_x(d2 / 2, d1 / 2) at x = d2 / (d2 + d1 F) (Abramowitz and Stegun 1964, 26.6.2), so F follows from x.
    """
    x = special.betaincinv(denominator_df / 2, numerator_df / 2, level)
    return float(denominator_df * (1 - x) / (numerator_df * x))


Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bounds = tuple[float, float]


def clustered_interval(
    mean: float, square: float, deviations: Floats, sizes: Ints, *, bounds: Bounds = (0.0, 1.0), weight: float = 1.0
) -> tuple[float, float]:
    """Low and high bound of the 95 % interval around a mean over whole clusters; NaN for fewer than two clusters.

    Args:
        mean, square: of the values and of their squares.
        deviations: [C] sum of the deviations of each cluster's values from the mean.
        sizes: [C] how many values each cluster has.
        bounds, weight: as for `pseudo_interval`.
    """
    if len(sizes) < 2:
        return math.nan, math.nan
    sample = effective_size(mean, square, deviations, sizes)
    return pseudo_interval(mean, square, sample, critical_value(0.05, len(sizes) - 1), bounds=bounds, weight=weight)


def pseudo_interval(
    mean: float, square: float, sample: float, t: float, *, bounds: Bounds = (0.0, 1.0), weight: float = 1.0
) -> tuple[float, float]:
    """Low and high bound around the mean of a sample and ``weight * t**2`` pseudo-observations, which bring it off the
    bounds of the values.

    Args:
        mean, square: of the sample's values and of their squares.
        sample: how many independent observations it is worth.
        t: quantile of Student's t.
        bounds: 0 and 1, with half of the pseudo-observations at either; or -1 and 1, with a quarter at either and half
            at 0.
    """
    pseudo = weight * t * t
    total = sample + pseudo
    centre = (sample * mean + pseudo * sum(bounds) / 2) / total
    # The mean square of the pseudo-observations is 1/2 for either bounds.
    half = t * math.sqrt(((sample * square + pseudo / 2) / total - centre**2) / total)
    return min(mean, max(bounds[0], centre - half)), max(mean, min(bounds[1], centre + half))


def effective_size(mean: float, square: float, deviations: Floats, sizes: Ints) -> float:
    """How many independent observations have the variance of the mean that whole clusters show; at most all values.

    Korn and Graubard 1998. Where hardly any value differs from the others the clusters show little: half a cluster
    more, of average size and all of the rarer outcome, stands for what a few clusters do not show.

    Args:
        mean, square, deviations, sizes: as for `clustered_interval`.
    """
    n = int(sizes.sum())
    average = float((sizes**2).sum()) / n
    unseen = 0.5 * average * max(mean, 1 - mean) ** 2
    of_values = n * max(square - mean**2, 0.0) + unseen
    of_clusters = float((deviations**2).sum()) + average * unseen
    return min(float(n), n * of_values / of_clusters)
