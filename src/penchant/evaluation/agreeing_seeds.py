"""Verdicts among several methods whose seeds differ no more than chance explains.

With S seeds the seeds' part of an error has S - 1 degrees of freedom, and Student's quantile for two of them is 9.9 at
a level of 0.01. But where no difference between seeds shows, most of what moves a seed's mean is the residual, and that
is known from (S - 1)(N - 1) degrees of freedom. So a method whose seeds agree, by an F test, may stand on another
bound: the largest probability, over every variance the seeds could have, that its seeds agree *and* its mean is so far
from zero. One method whose seeds differ in truth and agree by chance is thereby held to `share_of_level`; the F test of
all methods' seeds together makes several such methods at once unlikely.

Legend: S seeds, N prompts, m methods.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from penchant.evaluation.variance_components import Variances, falling_root
from penchant.intervals.student_t import critical_ratio, critical_value, f_tail, two_sided_p

Shape = tuple[Variances, int, int]
"""A difference's variance components, with a residual above zero, its seeds and its prompts."""

METHOD_LEVEL, FAMILY_LEVEL = 0.05, 0.01
"""Levels of the F tests that a method's seeds agree, and that all methods' together do."""

_STEP, _LARGEST = 1.15, 1e5
"""Of the grid of variances the seeds may have, in units of the residual's part of the error."""


def share_of_level(seeds: int) -> float:
    """The part of the family-wise level that a method whose seeds agree by chance may use up.

    Set by simulation (decision 006): 0.6 with 3 seeds, less with more of them, where the F tests are sharper and the
    other bound needs no help.
    """
    return min(0.6, 1.2 / (seeds - 1))


def agreeing_methods(shapes: Mapping[int, Shape]) -> set[int]:
    """Those whose seeds differ no more than the residual explains, if all methods' seeds together do not either.

    None of a single method: its careful interval is narrow enough.

    Args:
        shapes: of each method, by a number of its own.
    """
    ratios = {key: variances.seed_ratio(prompts) for key, (variances, _, prompts) in shapes.items()}
    if len(shapes) < 2 or math.inf in ratios.values():
        return set()
    weights = {key: seeds - 1 for key, (_, seeds, _) in shapes.items()}
    freedom = sum(weights.values())
    below = sum(weights[key] * (prompts - 1) for key, (_, _, prompts) in shapes.items())
    if f_tail(sum(weights[key] * ratios[key] for key in shapes) / freedom, freedom, below) < FAMILY_LEVEL:
        return set()
    return {key for key, (_, seeds, prompts) in shapes.items() if method_agrees(ratios[key], seeds, prompts)}


def method_agrees(ratio: float, seeds: int, prompts: int) -> bool:
    """Whether one method's seeds' mean square over that of its residual is no larger than chance explains."""
    return ratio <= _critical_ratio(seeds, prompts)


def adjusted_p(value: float, shape: Shape, methods: int) -> float:
    """p-value of one of m methods whose seeds agree, adjusted: below alpha where `half_width` is below `value`."""
    share = share_of_level(shape[1])
    return min(1.0, max(agreeing_p(value, *shape) / share, methods * floor_p(value, *shape)))


def half_width(shape: Shape, methods: int, alpha: float) -> float:
    """Half of the interval around one of m methods whose seeds agree."""
    level = alpha * share_of_level(shape[1])
    return max(agreeing_half_width(*shape, level), floor_half_width(*shape, alpha / methods))


def agreeing_p(value: float, variances: Variances, seeds: int, prompts: int) -> float:
    """Largest probability that the seeds agree and the mean is as far from zero as `value`, whatever the seeds differ.

    Args:
        value: the mean over seeds and prompts.
        variances: with a residual above zero.
    """
    residual, of_prompts = _parts(variances, seeds, prompts)
    largest = 0.0
    for extra, chance in _agreement(seeds, prompts):
        if chance <= largest:  # It falls along the grid, and the tail is at most 1.
            break
        tail = two_sided_p(abs(value) / math.sqrt(of_prompts + residual * (1 + extra)), prompts - 1)
        largest = max(largest, chance * tail)
    return largest


def agreeing_half_width(variances: Variances, seeds: int, prompts: int, level: float) -> float:
    """Half of the interval that ends where `agreeing_p` is `level`."""
    residual, of_prompts = _parts(variances, seeds, prompts)
    narrowest = critical_value(level, prompts - 1) * math.sqrt(residual + of_prompts)

    def excess(log_half: float) -> float:
        return math.log(agreeing_p(math.exp(log_half), variances, seeds, prompts) / level)

    low = high = math.log(0.5 * narrowest)
    while excess(high) > 0:
        low, high = high, high + 1
    return math.exp(falling_root(excess, low, high))


def floor_p(value: float, variances: Variances, seeds: int, prompts: int) -> float:
    """Two-sided p-value of the mean if seeds had no effect at all: what is left is the residual and the prompts."""
    return two_sided_p(abs(value) / math.sqrt(sum(_parts(variances, seeds, prompts))), prompts - 1)


def floor_half_width(variances: Variances, seeds: int, prompts: int, level: float) -> float:
    """Half of the interval that ends where `floor_p` is `level`."""
    return critical_value(level, prompts - 1) * math.sqrt(sum(_parts(variances, seeds, prompts)))


def _parts(variances: Variances, seeds: int, prompts: int) -> tuple[float, float]:
    """The residual's and the prompts' part of the mean's variance."""
    return variances.residual / (seeds * prompts), max(variances.prompt, 0.0) / prompts


@lru_cache(maxsize=256)
def _critical_ratio(seeds: int, prompts: int) -> float:
    return critical_ratio(METHOD_LEVEL, seeds - 1, (seeds - 1) * (prompts - 1))


@lru_cache(maxsize=256)
def _agreement(seeds: int, prompts: int) -> tuple[tuple[float, float], ...]:
    """Variances of the seeds' means beside the residual's, and the probability that such seeds agree."""
    limit, above, below = _critical_ratio(seeds, prompts), seeds - 1, (seeds - 1) * (prompts - 1)
    steps = math.ceil(math.log(_LARGEST / 0.05) / math.log(_STEP))
    grid = [0.0, *(0.05 * _STEP**step for step in range(steps))]
    return tuple((extra, 1 - f_tail(limit / (1 + extra), above, below)) for extra in grid)
