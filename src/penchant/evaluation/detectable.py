"""Which difference between methods a number of seeds and prompts can find, before anything is trained.

Legend: S seeds, N prompts, m methods.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from penchant.evaluation.agreeing_seeds import half_width, method_agrees
from penchant.evaluation.variance_components import Variances
from penchant.intervals.student_t import critical_ratio

POWER = 0.8
"""Share of comparisons in which the difference is to be found."""

_DRAWS = 40
"""Values of the seeds' mean square that stand for its distribution."""


def detectable_difference(
    expected: Variances, seeds: int, prompts: int, methods: int, *, alpha: float = 0.05
) -> float | None:
    """The true difference that `holm` finds in 80 % of comparisons; None where no difference up to 1 is found so often.

    Args:
        expected: of the difference of two methods' values, each in [0, 1]; `seed` is taken as zero.
        methods: compared with the baseline.
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
    """Half of a verdict's interval for evenly spread quantiles of the seeds' mean square, the residual's being 1."""
    halves, agreeing = [], math.inf
    if methods > 1:
        plain = Variances(0.0, expected.prompt, expected.residual)
        agreeing = half_width((plain, seeds, prompts), methods, alpha)
    for draw in range(_DRAWS):
        ratio = critical_ratio((draw + 0.5) / _DRAWS, seeds - 1, (seeds - 1) * (prompts - 1))
        seed = (ratio - 1) * expected.residual / prompts
        careful = Variances(seed, expected.prompt, expected.residual).careful_half_width(
            seeds, prompts, alpha / methods
        )
        halves.append(min(careful, agreeing) if method_agrees(ratio, seeds, prompts) else careful)
    return halves
