"""Statistics of methods compared over training seeds and held-out prompts.

Every method is trained with the same S seeds and measured on the same N prompts, so the differences [S, N] between two
methods form a crossed design: an effect of the seed (all prompts of a seed share it), one of the prompt (all seeds
share it), and a residual. An interval over prompts alone forgets that another seed gives another model; one over seeds
alone forgets that other prompts give another test. The interval here has both.

It is **not** a bootstrap. Resampling seeds x prompts with replacement (Owen 2007, arXiv 0712.1111) was tried and its
percentile interval covers 75-79 % instead of 95 % with 3 seeds that differ, 85-88 % with 5. The t interval from
variance components covers 95-97 % with 3, 5 and 10 seeds; where the residual is several times the prompts'
variance and there are 3 seeds it covers 93.4-97.6 %.

A verdict among many methods is held at levels of 0.05 / m, where an estimate from 3 seeds that came out small by chance
gives a false "better". There the seeds' part of the error gets the quantile of its own few degrees of freedom
 (`Variances.careful_half_width`), or, where seeds differ no more than chance explains, the bound
of `evaluation.variance_components`.

Legend: S seeds, N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from penchant.evaluation import variance_components
from penchant.evaluation.statistics import Estimate, Floats
from penchant.evaluation.variance_components import CrossedMean, Variances, components
from penchant.intervals import critical_value

Outcome = Literal["better", "worse", "not distinguishable"]

_FEW_SEEDS = 9
"""Number of additional seeds at which the careful interval is no wider than the bound for agreeing seeds."""

_MOST = 1 << 20
"""Upper limit of the search for more seeds or prompts; a difference not found with it counts as never found."""


@dataclass(frozen=True)
class Difference:
    """A method's mean minus the baseline's, over the same seeds and prompts.

    Attributes:
        value: NaN where nothing was measured by both.
        low, high: 95 % interval, for this difference alone; NaN with a single seed or prompt.
        n_seeds: number of common seeds.
        n_prompts: number of prompts measured by both with every seed; 0 if the metric is not a mean over prompts.
        left_out: number of prompts that one of them did not measure with some seed.
        variances: variance components; None without an interval.
    """

    value: float
    low: float
    high: float
    n_seeds: int
    n_prompts: int
    left_out: int
    variances: Variances | None

    @cached_property
    def p(self) -> float:
        """Two-sided p-value for verdicts: the level at which `interval` ends at zero; NaN without an interval.

        It may be above 0.05 where `low` and `high`, for this difference alone, leave zero out.
        """
        return self.p_with()

    def interval(self, level: float) -> tuple[float, float]:
        """The interval that misses the true difference with probability `level` at most."""
        if self.variances is None:
            return math.nan, math.nan
        half = self.variances.careful_half_width(self.n_seeds, max(self.n_prompts, 1), level)
        return self.value - half, self.value + half

    def p_with(self, *, seeds: int = 0, prompts: int = 0) -> float:
        """p-value with additional seeds and prompts if value and variances stay the same."""
        if self.variances is None:
            return math.nan
        return self.variances.careful_p(self.value, self.n_seeds + seeds, max(self.n_prompts, 1) + prompts)


@dataclass(frozen=True)
class Verdict:
    """Outcome for a difference after correction for the number of methods.

    Attributes:
        low, high: the corrected interval; it leaves zero out exactly if the outcome is better or worse.
        level: upper bound of the probability that this interval misses the true difference.
        p: p-value adjusted for the number of methods; below alpha exactly if the outcome is better or worse.
        agreeing_among: number of compared methods if the seeds differ no more than chance explains, else 0.
        alpha: the probability of any false verdict that all methods together are held to.
    """

    difference: Difference
    low: float
    high: float
    level: float
    p: float
    outcome: Outcome
    agreeing_among: int = 0
    alpha: float = 0.05

    @property
    def text(self) -> str:
        """The outcome, and the seeds or prompts needed if the two are not distinguishable."""
        if self.outcome != "not distinguishable":
            return self.outcome
        return f"{self.outcome}: {_what_it_takes(self)}"


def across_seeds(per_seed_means: ArrayLike) -> Estimate:
    """Mean over seeds with a 95 % Student t interval; `n` counts the seeds.

    One seed has no interval, nor have seeds that change nothing: they are no sample of runs.

    Args:
        per_seed_means: [S].
    """
    means = np.asarray(per_seed_means, dtype=np.float64)
    if not len(means):
        return Estimate(math.nan, math.nan, math.nan, 0)
    value = float(means.mean())
    if len(means) == 1 or np.ptp(means) < 1e-12:
        return Estimate(value, math.nan, math.nan, len(means))
    half = critical_value(0.05, len(means) - 1) * float(means.std(ddof=1)) / math.sqrt(len(means))
    return Estimate(value, value - half, value + half, len(means))


def paired_difference(ours: ArrayLike, baseline: ArrayLike) -> Difference:
    """Mean difference over the same seeds and prompts, with an interval for new seeds and new prompts.

    Row s of both is the same seed and column n the same prompt. A prompt counts where both have it with every seed.

    Args:
        ours, baseline: [S, N]; NaN where a prompt was not measured.
    """
    values = _paired_values(ours, baseline)
    complete = values[:, ~np.isnan(values).any(axis=0)]
    seeds, prompts = complete.shape
    value = float(complete.mean()) if complete.size else math.nan
    variances = components(complete) if seeds > 1 and prompts > 1 else None
    return _difference(value, seeds, prompts, values.shape[1] - prompts, variances)


def paired_seeds(ours: ArrayLike, baseline: ArrayLike) -> Difference:
    """Mean difference over the same seeds, for a metric that is no mean over prompts: a paired t interval.

    The interval does not account for other prompts.

    Args:
        ours, baseline: [S].
    """
    values = _paired_values(ours, baseline)
    value = float(values.mean()) if len(values) else math.nan
    variances = Variances(float(values.var(ddof=1)), 0.0, 0.0) if len(values) > 1 else None
    return _difference(value, len(values), 0, 0, variances)


def holm(differences: Sequence[Difference], alpha: float = 0.05) -> list[Verdict]:
    """Verdicts on all methods; the probability of any false better or worse is `alpha` at most.

    Holm 1979: the k-th smallest of m p-values is held against alpha / (m - k + 1), up to the first that fails. A
    difference's interval is at the level it was held against, those after the first failure at the failure's level, so
    that interval and outcome never contradict. The intervals decide; they do not hold all at once with 1 - alpha.
    Where seeds differ no more than chance explains, the verdict stands on the bound of `variance_components` if that is
    narrower. Higher is better. Differences without a p-value cannot be told and do not count in m.
    """
    verdicts = _step_down(differences, alpha)
    means = {i: _crossed_mean(difference) for i, difference in enumerate(differences) if difference.variances}
    agreeing = variance_components.agreeing_methods(means)
    return [
        _narrower_verdict(verdict, len(means), alpha) if i in agreeing else verdict
        for i, verdict in enumerate(verdicts)
    ]


def _step_down(differences: Sequence[Difference], alpha: float) -> list[Verdict]:
    testable = sorted(
        (i for i, difference in enumerate(differences) if not math.isnan(difference.p)), key=lambda i: differences[i].p
    )
    verdicts = {
        i: Verdict(difference, math.nan, math.nan, alpha, math.nan, "not distinguishable")
        for i, difference in enumerate(differences)
    }
    adjusted, stopped_at = 0.0, math.inf
    for rank, i in enumerate(testable):
        remaining_tests = len(testable) - rank
        level = min(alpha / remaining_tests, stopped_at)
        adjusted = max(adjusted, min(1.0, remaining_tests * differences[i].p))
        decided = differences[i].p < level
        if not decided:
            stopped_at = level
        low, high = differences[i].interval(level)
        verdicts[i] = Verdict(differences[i], low, high, level, adjusted, _outcome(differences[i].value, decided))
    return [verdicts[i] for i in range(len(differences))]


def _narrower_verdict(verdict: Verdict, methods: int, alpha: float) -> Verdict:
    """The verdict by the bound for agreeing seeds where that is narrower than Holm's interval."""
    difference, mean = verdict.difference, _crossed_mean(verdict.difference)
    half = variance_components.half_width(mean, methods, alpha)
    if half >= verdict.high - difference.value:
        return replace(verdict, agreeing_among=methods, alpha=alpha)
    low, high = difference.value - half, difference.value + half
    level = alpha * variance_components.share_of_level(mean.seeds)
    p = variance_components.adjusted_p(difference.value, mean, methods)
    return Verdict(difference, low, high, level, p, _outcome(difference.value, low > 0 or high < 0), methods, alpha)


def _crossed_mean(difference: Difference, *, seeds: int = 0) -> CrossedMean:
    """The mean difference with additional seeds that agree as these do."""
    assert difference.variances is not None
    return CrossedMean(difference.variances, difference.n_seeds + seeds, difference.n_prompts)


def seeds_needed(difference: Difference, level: float = 0.05) -> int | None:
    """Approximate number of additional seeds until the interval excludes zero if value and variances stay the same.

    None if no number of seeds is enough: with a single seed, without a difference, or because of the prompts.
    """
    return _smallest_sufficient(lambda seeds: difference.p_with(seeds=seeds) < level)


def prompts_needed(difference: Difference, level: float = 0.05) -> int | None:
    """Approximate number of additional prompts until the interval excludes zero; None if no number is enough."""
    if not difference.n_prompts:
        return None
    return _smallest_sufficient(lambda prompts: difference.p_with(prompts=prompts) < level)


def _paired_values(ours: ArrayLike, baseline: ArrayLike) -> Floats:
    """Differences of two arrays of one shape, [S] or [S, N]."""
    our_values, baseline_values = np.asarray(ours, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    if our_values.shape != baseline_values.shape:
        raise ValueError(
            f"values of shape {our_values.shape} cannot be paired with values of shape {baseline_values.shape}"
        )
    return our_values - baseline_values


def _difference(value: float, seeds: int, prompts: int, left_out: int, variances: Variances | None) -> Difference:
    if variances is None:
        return Difference(value, math.nan, math.nan, seeds, prompts, left_out, None)
    error, distribution = variances.error(seeds, max(prompts, 1))
    half = distribution.critical_value(0.05) * error
    return Difference(value, value - half, value + half, seeds, prompts, left_out, variances)


def _outcome(value: float, decided: bool) -> Outcome:
    if not decided:
        return "not distinguishable"
    return "better" if value > 0 else "worse"


def _smallest_sufficient(enough: Callable[[int], bool]) -> int | None:
    """The smallest number from 0 for which the monotone `enough` holds; None above the search limit."""
    if not enough(_MOST):
        return None
    low, high = -1, _MOST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _what_it_takes(verdict: Verdict) -> str:
    difference = verdict.difference
    if math.isnan(difference.value):
        return "nothing was measured by both"
    if difference.n_seeds < 2:
        return "one seed does not show how seeds differ; needs at least 1 more seed"
    if difference.variances is None:
        return "one prompt does not show how prompts differ; needs more prompts"
    seeds = _extra_seeds_needed(verdict)
    if seeds is not None:
        return f"needs about {seeds:,} more seed{'s' if seeds > 1 else ''}"
    if difference.value == 0:
        return "the two are equal"
    prompts = prompts_needed(difference, _step_level(verdict))
    if prompts is None:
        return "more seeds alone will not do, nor more prompts alone; needs more of both"
    return f"more seeds alone will not do; needs about {prompts:,} more prompts"


def _extra_seeds_needed(verdict: Verdict) -> int | None:
    """Approximate number of additional seeds for a better or worse, by the bound that needs fewer."""
    difference, methods = verdict.difference, verdict.agreeing_among
    seeds = seeds_needed(difference, _step_level(verdict))
    if not methods:
        return seeds
    for extra_seeds in range(1, _FEW_SEEDS if seeds is None else min(seeds, _FEW_SEEDS)):
        mean = _crossed_mean(difference, seeds=extra_seeds)
        if variance_components.adjusted_p(difference.value, mean, methods) < verdict.alpha:
            return extra_seeds
    return seeds


def _step_level(verdict: Verdict) -> float:
    """The level of the careful interval in Holm's procedure."""
    return verdict.alpha / verdict.agreeing_among if verdict.agreeing_among else verdict.level
