"""The variance of a mean over seeds and prompts by its parts, tests with it, and the difference it can detect.

The mean squares of the two-way random-effects model (Searle, Casella and McCulloch 1992, section 4.3).

Legend: S seeds, N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from penchant.evaluation.statistics import Floats
from penchant.intervals import Mixture, critical_ratio, critical_value, f_tail, two_sided_p


@dataclass(frozen=True)
class Variances:
    """Components of the variance of a difference.

    Attributes:
        seed, prompt: variances of the effects; an estimate may be below zero.
        residual: variance of a single difference given its seed and prompt.
    """

    seed: float
    prompt: float
    residual: float

    def error(self, seeds: int, prompts: int) -> tuple[float, Mixture]:
        """Standard error of the mean over S x N differences, and the distribution of the mean in units of it.

        Components below zero are taken as zero. The distribution mixes Student t with S - 1 and with N - 1 degrees of
        freedom by the seeds' and the prompts' share of the variance. One t with Satterthwaite's degrees of freedom
        would cover 91.5-93 % with 3 seeds that differ, where the seeds' share itself is badly known.
        """
        seed_square = prompts * self.seed + self.residual
        variance = max(seed_square, self.residual) + seeds * max(self.prompt, 0.0)
        # How much of the residual counts as the seeds', and the power, were set by simulation: without them intervals
        # are too wide where seeds agree, and too narrow where few seeds dominate.
        noise = 0.6 * self.residual**2 / max(seed_square, self.residual) if self.residual else 0.0
        share = max(seed_square - noise, 0.0) / variance if variance else 1.0
        share = share ** (1 - share) if share > 0 else 0.0
        return math.sqrt(variance / (seeds * prompts)), Mixture(share, seeds - 1, max(prompts - 1, 1))

    def seed_ratio(self, prompts: int) -> float:
        """Mean square of seeds over that of the residual, about 1 without an effect; infinite without a residual."""
        return (prompts * self.seed + self.residual) / self.residual if self.residual > 0 else math.inf

    def careful_half_width(self, seeds: int, prompts: int, level: float) -> float:
        """Half width of a verdict's interval, which misses with probability `level` at most, even a small one.

        ``sqrt(t_(S-1)^2 v_seed + t_(N-1)^2 v_prompt)``: each part of the error with the quantile of its own degrees of
        freedom (modified large samples: Graybill and Wang 1980), or `error`'s interval where that is wider. The
        mixture alone is too narrow at the levels of many methods: an estimate from 3 seeds that came out small by
        chance called one of 12 methods better in up to 20 % of simulated comparisons without an effect.
        """
        error, distribution = self.error(seeds, prompts)
        return max(self._by_parts(seeds, prompts, level), distribution.critical_value(level) * error)

    def careful_p(self, value: float, seeds: int, prompts: int) -> float:
        """The level at which the careful interval around `value` ends at zero."""
        error, distribution = self.error(seeds, prompts)
        if value == 0 or error == 0:
            return float(value == 0)
        t = abs(value) / error
        # By parts, the quantile lies between those of the many and of the few degrees of freedom.
        low, high = sorted(math.log(max(two_sided_p(t, df), 1e-15)) for df in (distribution.many, distribution.few))
        log_level = falling_root(
            lambda level: math.log(self._by_parts(seeds, prompts, math.exp(level)) / abs(value)), low, high
        )
        return max(math.exp(log_level), distribution.two_sided_p(t))

    def _by_parts(self, seeds: int, prompts: int, level: float) -> float:
        of_seeds = max(prompts * self.seed + self.residual, self.residual) / (seeds * prompts)
        of_prompts = max(self.prompt, 0.0) / prompts
        few, many = critical_value(level, seeds - 1), critical_value(level, max(prompts - 1, 1))
        return math.sqrt(few**2 * of_seeds + many**2 * of_prompts)


def components(values: Floats) -> Variances:
    """Variance components of [S, N] values."""
    seeds, prompts = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    residuals = values - rows[:, None] - columns + values.mean()
    residual = float((residuals**2).sum() / ((seeds - 1) * (prompts - 1)))
    seed = float(rows.var(ddof=1)) - residual / prompts
    return Variances(seed, float(columns.var(ddof=1)) - residual / seeds, residual)


def falling_root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Root of a falling function between `low` and `high` (Dowell and Jarratt 1971: the Illinois method)."""
    value_low, value_high = falling(low), falling(high)
    if min(abs(value_low), abs(value_high)) < 1e-12 or value_low * value_high > 0:  # An end, but for rounding.
        return low if abs(value_low) < abs(value_high) else high
    while high - low > 1e-12 * max(1.0, abs(low)):
        middle = high - value_high * (high - low) / (value_high - value_low)
        value = falling(middle)
        if abs(value) < 1e-14:
            return middle
        if value > 0:
            low, value_low, value_high = middle, value, value_high / 2
        else:
            high, value_high, value_low = middle, value, value_low / 2
    return (low + high) / 2


@dataclass(frozen=True)
class CrossedMean:
    """A mean difference over S seeds x N prompts, whose residual variance is positive."""

    variances: Variances
    seeds: int
    prompts: int

    @property
    def parts(self) -> tuple[float, float]:
        """The residual's and the prompts' part of the mean's variance."""
        residual = self.variances.residual / (self.seeds * self.prompts)
        return residual, max(self.variances.prompt, 0.0) / self.prompts


METHOD_LEVEL, FAMILY_LEVEL = 0.05, 0.01
"""Levels of the F tests that the seeds of one method, and of all methods together, agree."""

_STEP, _LARGEST = 1.15, 1e5
"""Factor and end of the grid of the seeds' variance, in units of the residual's part of the error."""


def share_of_level(seeds: int) -> float:
    """Part of the family-wise level for a method whose seeds agree by chance.

    Set by simulation (decision 006): 0.6 with 3 seeds, and less with more seeds, for which the F tests are sharper.
    """
    return min(0.6, 1.2 / (seeds - 1))


def agreeing_methods(means: Mapping[int, CrossedMean]) -> set[int]:
    """Methods whose seeds differ no more than the residual explains, if that holds for all methods together.

    Empty for a single method, whose careful interval is narrow enough.

    Args:
        means: index of a method -> its mean difference.
    """
    ratios = {key: mean.variances.seed_ratio(mean.prompts) for key, mean in means.items()}
    if len(means) < 2 or math.inf in ratios.values():
        return set()
    weights = {key: mean.seeds - 1 for key, mean in means.items()}
    freedom = sum(weights.values())
    residual_freedom = sum(weights[key] * (mean.prompts - 1) for key, mean in means.items())
    if f_tail(sum(weights[key] * ratios[key] for key in means) / freedom, freedom, residual_freedom) < FAMILY_LEVEL:
        return set()
    return {key for key, mean in means.items() if method_agrees(ratios[key], mean.seeds, mean.prompts)}


def method_agrees(ratio: float, seeds: int, prompts: int) -> bool:
    """Whether the ratio of a method's mean squares of seeds and residual is no larger than chance explains."""
    return ratio <= _critical_ratio(seeds, prompts)


def adjusted_p(value: float, mean: CrossedMean, methods: int) -> float:
    """p-value of one of m methods whose seeds agree, adjusted: below alpha where `half_width` is below `value`."""
    return min(1.0, max(agreeing_p(value, mean) / share_of_level(mean.seeds), methods * floor_p(value, mean)))


def half_width(mean: CrossedMean, methods: int, alpha: float) -> float:
    """Half width of the interval of one of m methods whose seeds agree."""
    level = alpha * share_of_level(mean.seeds)
    return max(agreeing_half_width(mean, level), floor_half_width(mean, alpha / methods))


def agreeing_p(value: float, mean: CrossedMean) -> float:
    """Largest probability, over seed variances, that seeds agree and the mean is as far from zero as `value`."""
    residual, of_prompts = mean.parts
    largest = 0.0
    for extra, chance in _agreement(mean.seeds, mean.prompts):
        if chance <= largest:  # It falls along the grid, and the tail is at most 1.
            break
        tail = two_sided_p(abs(value) / math.sqrt(of_prompts + residual * (1 + extra)), mean.prompts - 1)
        largest = max(largest, chance * tail)
    return largest


def agreeing_half_width(mean: CrossedMean, level: float) -> float:
    """Half width of the interval at whose ends `agreeing_p` is `level`."""
    residual, of_prompts = mean.parts
    narrowest = critical_value(level, mean.prompts - 1) * math.sqrt(residual + of_prompts)

    def excess(log_half: float) -> float:
        return math.log(agreeing_p(math.exp(log_half), mean) / level)

    low = high = math.log(0.5 * narrowest)
    while excess(high) > 0:
        low, high = high, high + 1
    return math.exp(falling_root(excess, low, high))


def floor_p(value: float, mean: CrossedMean) -> float:
    """Two-sided p-value of the mean if seeds had no effect: only residual and prompts contribute to the error."""
    return two_sided_p(abs(value) / math.sqrt(sum(mean.parts)), mean.prompts - 1)


def floor_half_width(mean: CrossedMean, level: float) -> float:
    """Half width of the interval at whose ends `floor_p` is `level`."""
    return critical_value(level, mean.prompts - 1) * math.sqrt(sum(mean.parts))


@lru_cache(maxsize=256)
def _critical_ratio(seeds: int, prompts: int) -> float:
    return critical_ratio(METHOD_LEVEL, seeds - 1, (seeds - 1) * (prompts - 1))


@lru_cache(maxsize=256)
def _agreement(seeds: int, prompts: int) -> tuple[tuple[float, float], ...]:
    """Variances of the seeds' means beside the residual's, and the probability that such seeds agree."""
    limit, seed_freedom, residual_freedom = _critical_ratio(seeds, prompts), seeds - 1, (seeds - 1) * (prompts - 1)
    steps = math.ceil(math.log(_LARGEST / 0.05) / math.log(_STEP))
    grid = [0.0, *(0.05 * _STEP**step for step in range(steps))]
    return tuple((extra, 1 - f_tail(limit / (1 + extra), seed_freedom, residual_freedom)) for extra in grid)


POWER = 0.8
"""Required share of comparisons that detect the difference."""

_DRAWS = 40
"""Number of quantiles that represent the distribution of the seeds' mean square."""


def detectable_difference(
    expected: Variances, seeds: int, prompts: int, methods: int, *, alpha: float = 0.05
) -> float | None:
    """True difference that `holm` detects in 80 % of comparisons; None if no difference up to 1 is detected so often.

    Args:
        expected: variances of the difference of two methods' values in [0, 1]; `seed` is taken as zero.
        methods: number of methods compared with the baseline.
    """
    if seeds < 2 or prompts < 2:
        return None
    halves = _half_widths(expected, seeds, prompts, methods, alpha)
    error, _ = Variances(0.0, expected.prompt, expected.residual).error(seeds, prompts)

    def power(difference: float) -> float:
        return sum(NormalDist().cdf((difference - half) / error) for half in halves) / len(halves)

    if power(1.0) < POWER:
        return None
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high


def _half_widths(expected: Variances, seeds: int, prompts: int, methods: int, alpha: float) -> list[float]:
    """Half widths of a verdict's interval at quantiles of the seeds' mean square in units of the residual's."""
    halves, agreeing = [], math.inf
    if methods > 1:
        plain = Variances(0.0, expected.prompt, expected.residual)
        agreeing = half_width(CrossedMean(plain, seeds, prompts), methods, alpha)
    for draw in range(_DRAWS):
        ratio = critical_ratio((draw + 0.5) / _DRAWS, seeds - 1, (seeds - 1) * (prompts - 1))
        seed = (ratio - 1) * expected.residual / prompts
        careful = Variances(seed, expected.prompt, expected.residual).careful_half_width(
            seeds, prompts, alpha / methods
        )
        halves.append(min(careful, agreeing) if method_agrees(ratio, seeds, prompts) else careful)
    return halves
