"""Recipes' models compared over seeds and questions: an estimate for each, and a verdict on each difference.

Legend: S seeds, N questions; NaN where a question was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator

from penchant.evaluation.comparisons import Difference, holm, paired_difference
from penchant.evaluation.seed_means import mean_over_seeds
from penchant.evaluation.statistics import Estimate, Floats, bootstrap_mean

Key = TypeVar("Key")


def _several(value: list[int]) -> list[int]:
    if len(value) < 2 or len(set(value)) < len(value) or min(value) < 0:
        raise ValueError("expected two seeds or more, each once: one does not show how seeds differ")
    return value


Seeds = Annotated[list[int], AfterValidator(_several)]
"""Of a configuration: every model is tuned with each."""


def over_seeds(table: Floats) -> Estimate:
    """The mean of [S, N]; the interval is over seeds and questions, of a single model over questions."""
    if len(table) == 1:
        values = table[0][~np.isnan(table[0])]
        return bootstrap_mean(values, range(len(values)))
    return mean_over_seeds(table, range(table.shape[1]))


def differences(
    pairs: Mapping[Key, tuple[Floats, Floats]], *, lower_is_better: bool = False
) -> dict[Key, dict[str, Any]]:
    """Of each pair the second less the first, paired over seeds and questions, as JSON.

    The outcomes are corrected (Holm) for the number of pairs.

    Args:
        pairs: before, [S, N] or of a single model [1, N]; and after, [S, N].
        lower_is_better: says which of two is better, and does not turn the numbers.
    """
    found = [paired_difference(after, np.broadcast_to(before, after.shape)) for before, after in pairs.values()]
    verdicts = holm([_turned(each) if lower_is_better else each for each in found])
    return {key: _row(each, verdict.outcome) for key, each, verdict in zip(pairs, found, verdicts, strict=True)}


def _row(difference: Difference, outcome: str) -> dict[str, Any]:
    numbers = {name: getattr(difference, name) for name in ("value", "low", "high")}
    told = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    return {**told, "n": difference.n_prompts, "outcome": outcome}


def _turned(difference: Difference) -> Difference:
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)
