"""Student's t and Fisher's F distributions, and mixtures of two t, for any positive degrees of freedom."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist


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
        t = low
        while high - low > 1e-12 * high:
            p = self.two_sided_p(t)
            low, high = (t, high) if p > level else (low, t)
            density = self.share * _density(t, self.few) + (1 - self.share) * _density(t, self.many)
            # Newton's step, or half the bracket where the step would leave it.
            following = t * math.exp(math.log(p / level) * p / (2 * t * density))
            if abs(following - t) <= 1e-12 * t:
                break
            t = following if low < following < high else (low + high) / 2
        return t


def two_sided_p(t: float, df: float) -> float:
    """Probability that a Student t variable is at least `t` away from zero; t >= 0.

    The regularised incomplete beta function at df/(df + t²) (Abramowitz and Stegun 1964, 26.7.1 and 26.5.27).
    """
    if math.isinf(t):
        return 0.0
    return _incomplete_beta(df / (df + t * t), df / 2, 0.5)


def f_tail(ratio: float, above: float, below: float) -> float:
    """Probability that a variable of Fisher's F distribution is at least `ratio`; ratio >= 0.

    The regularised incomplete beta function at d2 / (d2 + d1 F) (Abramowitz and Stegun 1964, 26.6.2).

    Args:
        above, below: degrees of freedom of the numerator and of the denominator.
    """
    return _incomplete_beta(below / (below + above * ratio), below / 2, above / 2)


@lru_cache(maxsize=1024)
def critical_ratio(level: float, above: float, below: float) -> float:
    """The ratio with ``f_tail(ratio, above, below) == level``; 0 < level < 1."""
    low, high = 0.0, 1.0
    while f_tail(high, above, below) > level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if f_tail(middle, above, below) > level else (low, middle)
    return high


@lru_cache(maxsize=1024)
def critical_value(level: float, df: float) -> float:
    """The t > 0 with `two_sided_p(t, df) == level`; 0 < level < 1."""
    t = max(-NormalDist().inv_cdf(level / 2), 1e-9)
    for _ in range(100):
        # Newton's method on log p over log t, which is concave: it does not overshoot however heavy the tail.
        p = two_sided_p(t, df)
        step = math.log(p / level) * p / (2 * t * _density(t, df))
        t *= math.exp(step)
        if abs(step) < 1e-12:
            break
    return t


def _density(t: float, df: float) -> float:
    log_constant = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)
    return math.exp(log_constant - (df + 1) / 2 * math.log1p(t * t / df))


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    log_factor = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    # The fraction converges fast below the mean only; above it the other tail is taken.
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_factor) * _continued_fraction(x, a, b) / a
    return 1 - math.exp(log_factor) * _continued_fraction(1 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    """The fraction of Abramowitz and Stegun 26.5.8, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
