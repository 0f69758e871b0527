"""Tails and critical values of Student's t and Fisher's F distributions, and of mixtures of two t."""

from __future__ import annotations

from dataclasses import dataclass

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
