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
from penchant.evaluation.statistics import Estimate, Floats, are_shares, bootstrap_mean, mean_of_shares

Key = TypeVar("Key")


def _several(value: list[int]) -> list[int]:
    if len(value) < 2 or len(set(value)) < len(value) or min(value) < 0:
        raise ValueError("expected two seeds or more, each once: one does not show how seeds differ")
    return value


Seeds = Annotated[list[int], AfterValidator(_several)]
"""Of a configuration: every model is tuned with each."""


def over_seeds(table: Floats) -> Estimate:
    """The mean of [S, N]; the interval is over seeds and questions, of a single model over questions.

    Of shares it is at least as wide as one over questions alone, and inside [0, 1].
    """
    if len(table) == 1:
        values = table[0][~np.isnan(table[0])]
        return bootstrap_mean(values, range(len(values)))
    found = paired_difference(table, np.zeros_like(table))
    low, high = found.low, found.high
    complete = table[:, ~np.isnan(table).any(axis=0)]
    if not math.isnan(low) and are_shares(complete):
        # Where all seeds are right about all questions no variance is seen, and t would go beyond 1.
        share = mean_of_shares(complete.ravel(), np.tile(np.arange(complete.shape[1]), len(complete)))
        low, high = max(0.0, min(low, share.low)), min(1.0, max(high, share.high))
    return Estimate(found.value, low, high, found.n_prompts)


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
