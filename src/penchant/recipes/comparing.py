"""Means and paired differences of a recipe's models over seeds and questions, with intervals and verdicts.

Legend: S seeds, N questions; NaN where a question was not measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator

from penchant.api import Difference, Estimate, Floats, bootstrap_mean, holm, mean_over_seeds, paired_difference

Key = TypeVar("Key")


def _check_seeds(value: list[int]) -> list[int]:
    if len(value) < 2 or len(set(value)) < len(value) or min(value) < 0:
        raise ValueError("expected two seeds or more, each once: one does not show how seeds differ")
    return value


Seeds = Annotated[list[int], AfterValidator(_check_seeds)]
"""A configuration's seeds, at least two: every model is trained once with each seed."""


def mean_over_questions(table: Floats) -> Estimate:
    """Mean of a table [S, N], with an interval over seeds and questions; over questions alone where S is 1."""
    if len(table) == 1:
        values = table[0][~np.isnan(table[0])]
        return bootstrap_mean(values, range(len(values)))
    return mean_over_seeds(table, range(table.shape[1]))


def paired_differences(
    pairs: Mapping[Key, tuple[Floats, Floats]], *, lower_is_better: bool = False
) -> dict[Key, dict[str, Any]]:
    """The second table of every pair minus the first, paired over seeds and questions, as JSON.

    The outcomes are corrected (Holm) for the number of pairs.

    Args:
        pairs: tables (baseline, treatment); a baseline is [S, N], or [1, N] for a single model, a treatment [S, N].
        lower_is_better: decides the outcome only; the sign of the differences stays.
    """
    results = [
        paired_difference(treatment, np.broadcast_to(baseline, treatment.shape))
        for baseline, treatment in pairs.values()
    ]
    verdicts = holm([_negate(result) if lower_is_better else result for result in results])
    return {
        key: _to_json(result, verdict.outcome) for key, result, verdict in zip(pairs, results, verdicts, strict=True)
    }


def _to_json(difference: Difference, outcome: str) -> dict[str, Any]:
    numbers = {name: getattr(difference, name) for name in ("value", "low", "high")}
    finite = {name: None if math.isnan(number) else number for name, number in numbers.items()}
    return {**finite, "n": difference.n_prompts, "outcome": outcome}


def _negate(difference: Difference) -> Difference:
    return replace(difference, value=-difference.value, low=-difference.high, high=-difference.low)
