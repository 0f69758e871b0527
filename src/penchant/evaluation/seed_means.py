"""A model's mean over training seeds and prompts, with an interval for new seeds and new prompts.

Both parts of its error, and the distribution between Student's t of seeds and of prompts, are those of a difference
(`evaluation.variance_components`). Of a share, the sample then counts as many observations as have that error, in the
interval that one model's share has (`intervals.shares`): inside [0, 1], skewed towards 1/2, and of no width 0 where all
seeds are right about all prompts.

Legend: S seeds, G groups (or fresh samples), N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from penchant.evaluation.statistics import Estimate, Floats, are_shares
from penchant.evaluation.variance_components import components
from penchant.intervals.shares import effective_size, pseudo_interval
from penchant.intervals.student_t import critical_value


def by_prompt(tables: Sequence[Floats], prompts: Sequence[Hashable]) -> list[Floats]:
    """Each model's values with one column a prompt, whose mean is still the mean over groups.

    A metric is a mean over groups, so a prompt weighs as many as it has. A column is ``m_s + w_n / w * (x_sn - m_s)``:
    x_sn the mean of the prompt's groups, w_n how many those are and w their mean, m_s the seed's mean over all groups.
    Columns then differ as prompts do (the linearised ratio of Cochran 1977, section 6.3); where every prompt has
    equally many groups, a column is the mean of its groups.

    Args:
        tables: [S, G] of models that are compared; NaN where a group was not measured.
        prompts: [G] each group's prompt.

    Returns:
        [S, N] for each model, prompts in the order they first come in. A group counts where all models have it with
        every seed; a prompt without such a group is NaN.
    """
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    whole = ~np.isnan(np.concatenate(tables)).any(axis=0)
    at = np.array([numbers[prompt] for prompt in prompts], dtype=np.int64)[whole]
    found = [np.full((len(table), len(numbers)), math.nan) for table in tables]
    if not len(at):
        return found
    counts = np.bincount(at, minlength=len(numbers))
    measured = counts > 0
    weights = counts[measured]
    for columns, table in zip(found, tables, strict=True):
        for row, values in zip(columns, table[:, whole], strict=True):
            sums = np.bincount(at, weights=values, minlength=len(numbers))[measured]
            row[measured] = values.mean() + (sums - weights * values.mean()) / weights.mean()
    return found


_ROUNDING = 1e-9
"""An error below this is none: columns that are alike differ by rounding."""


def mean_over_seeds(values: Floats, prompts: Sequence[Hashable]) -> Estimate:
    """The mean of values that may be shares; shares are told as by `evaluation.statistics.bootstrap_mean`.

    A single seed or prompt has no interval: it does not show how seeds or prompts differ.

    Args:
        values: [S, G]; a group counts where it was measured with every seed, else it is NaN.
        prompts: [G] each group's prompt.

    Returns:
        Its `n` counts the prompts.
    """
    table, numbers, columns = _complete(values, prompts)
    if min(columns.shape) < 2 or not are_shares(table):
        return _spread(table, columns)
    seeds, n = columns.shape
    mean, square = float(table.mean()), float((table**2).mean())
    deviations = np.bincount(numbers, weights=(table - mean).sum(0)).astype(np.float64)
    sample = effective_size(mean, square, deviations, seeds * np.bincount(numbers))
    error, distribution = components(columns).error(seeds, n)
    t = critical_value(0.05, n - 1)
    if error > _ROUNDING:
        sample, t = min(sample, (square - mean**2) / error**2), distribution.critical_value(0.05)
    return Estimate(mean, *pseudo_interval(mean, square, sample, t), n)


def unbounded_mean_over_seeds(values: Floats, prompts: Sequence[Hashable]) -> Estimate:
    """The same of values without bounds, as margins, whatever they are: the interval is symmetric."""
    table, _, columns = _complete(values, prompts)
    return _spread(table, columns)


def _spread(table: Floats, columns: Floats) -> Estimate:
    """Mean of [S, G] values with the interval that the variance of their [S, N] columns gives."""
    seeds, n = columns.shape
    mean = float(table.mean()) if table.size else math.nan
    if min(seeds, n) < 2:
        return Estimate(mean, math.nan, math.nan, n)
    error, distribution = components(columns).error(seeds, n)
    half = distribution.critical_value(0.05) * error
    return Estimate(mean, mean - half, mean + half, n)


def _complete(values: Floats, prompts: Sequence[Hashable]) -> tuple[Floats, list[int], Floats]:
    """Values of the groups measured with every seed, the number of each one's prompt, and the [S, N] columns."""
    whole = np.flatnonzero(~np.isnan(values).any(axis=0))
    names = [prompts[group] for group in whole.tolist()]
    places = {name: number for number, name in enumerate(dict.fromkeys(names))}
    table = values[:, whole]
    return table, [places[name] for name in names], by_prompt([table], names)[0]
