"""Values of groups as values of prompts: the groups of one prompt are no independent observations.

Legend: S seeds, G groups (or fresh samples), N prompts.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from penchant.evaluation.statistics import Floats


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
