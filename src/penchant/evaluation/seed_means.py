"""A model's mean over training seeds and prompts, with an interval for new seeds and new prompts.

Both parts of its error, and the distribution between Student's t of seeds and of prompts, are those of a difference
(`evaluation.variance_components`). Of a share, the sample then counts as many observations as have that error, in the
interval that one model's share has (`penchant.intervals`): inside [0, 1], skewed towards 1/2, and of no width 0 where
all seeds are right about all prompts.

Legend: S seeds, G groups (or fresh samples), N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from penchant.evaluation.statistics import Estimate, Floats, are_shares
from penchant.evaluation.variance_components import components
from penchant.intervals import critical_value, effective_size, pseudo_interval


def by_prompt(tables: Sequence[Floats], prompts: Sequence[Hashable]) -> list[Floats]:
    """Every model's values with one column per prompt, whose mean is still the mean over groups.

    A metric is a mean over groups, so a prompt weighs as many as it has. A column is ``m_s + w_n / w * (x_sn - m_s)``
    with x_sn the mean of the prompt's groups, w_n their number, w the mean of w_n, and m_s the seed's mean over all
    groups. Columns then differ as prompts do (the linearised ratio of Cochran 1977, section 6.3); if all prompts have
    equally many groups, a column is the mean of its groups.

    Args:
        tables: [S, G] values of every compared model; NaN for a group that was not measured.
        prompts: [G] the group's prompt.

    Returns:
        [S, N] values of every model, with prompts in the order of their first group. A group counts if all models
        have it with every seed; a prompt without such a group is NaN.
    """
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    is_complete = ~np.isnan(np.concatenate(tables)).any(axis=0)
    prompt_index = np.array([numbers[prompt] for prompt in prompts], dtype=np.int64)[is_complete]
    columns_by_table = [np.full((len(table), len(numbers)), math.nan) for table in tables]
    if not len(prompt_index):
        return columns_by_table
    counts = np.bincount(prompt_index, minlength=len(numbers))
    has_groups = counts > 0
    weights = counts[has_groups]
    for columns, table in zip(columns_by_table, tables, strict=True):
        for row, values in zip(columns, table[:, is_complete], strict=True):
            sums = np.bincount(prompt_index, weights=values, minlength=len(numbers))[has_groups]
            row[has_groups] = values.mean() + (sums - weights * values.mean()) / weights.mean()
    return columns_by_table


_ROUNDING = 1e-9
"""Errors below this are rounding errors of equal columns."""


def mean_over_seeds(values: Floats, prompts: Sequence[Hashable]) -> Estimate:
    """The mean of values that may be shares; `evaluation.statistics.are_shares` decides.

    A single seed or prompt has no interval: it does not show how seeds or prompts differ.

    Args:
        values: [S, G]; a group counts if it was measured with every seed, else it is NaN.
        prompts: [G] the group's prompt.

    Returns:
        The estimate; its `n` counts the prompts.
    """
    table, numbers, columns = _complete(values, prompts)
    if min(columns.shape) < 2 or not are_shares(table):
        return _symmetric_estimate(table, columns)
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
    """The mean of [S, G] values without bounds, such as margins, with a symmetric interval."""
    table, _, columns = _complete(values, prompts)
    return _symmetric_estimate(table, columns)


def _symmetric_estimate(table: Floats, columns: Floats) -> Estimate:
    """Mean of [S, G] values with the interval that the variance of their [S, N] columns gives."""
    seeds, n = columns.shape
    mean = float(table.mean()) if table.size else math.nan
    if min(seeds, n) < 2:
        return Estimate(mean, math.nan, math.nan, n)
    error, distribution = components(columns).error(seeds, n)
    half = distribution.critical_value(0.05) * error
    return Estimate(mean, mean - half, mean + half, n)


def _complete(values: Floats, prompts: Sequence[Hashable]) -> tuple[Floats, list[int], Floats]:
    """[S, G] values of groups measured with every seed, [G] numbers of their prompts, and [S, N] values of prompts."""
    complete_groups = np.flatnonzero(~np.isnan(values).any(axis=0))
    names = [prompts[group] for group in complete_groups.tolist()]
    number_of_prompt = {name: number for number, name in enumerate(dict.fromkeys(names))}
    table = values[:, complete_groups]
    return table, [number_of_prompt[name] for name in names], by_prompt([table], names)[0]
