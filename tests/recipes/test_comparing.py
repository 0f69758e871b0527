"""Estimates and differences over seeds and questions."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from penchant.evaluation.comparisons import paired_difference
from penchant.evaluation.statistics import bootstrap_mean, mean_of_shares
from penchant.recipes.results import Seeds, mean_over_questions, paired_differences

DRAW = np.random.default_rng(0)
BEFORE = DRAW.normal(size=(3, 40))
AFTER = BEFORE + 1 + 0.1 * DRAW.normal(size=(3, 40))


def test_mean_over_questions():
    estimate, expected = mean_over_questions(AFTER), paired_difference(AFTER, 0 * AFTER)
    assert (estimate.value, estimate.n) == (pytest.approx(AFTER.mean()), 40)
    assert (estimate.low, estimate.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    single = np.array([[1.0, np.nan, 3.0, 5.0]])
    assert mean_over_questions(single) == bootstrap_mean([1, 3, 5], range(3))


def test_interval_of_shares_has_a_width_where_all_seeds_agree():
    right, over_questions = mean_over_questions(np.ones((3, 20))), mean_of_shares(np.ones(20), range(20))
    assert (right.value, right.low, right.high, right.n) == (1.0, over_questions.low, 1.0, 20)
    # One seed is much worse: the interval over seeds is wider, and ends at 1.
    table = np.ones((3, 20))
    table[2, :10] = 0.0
    assert paired_difference(table, 0 * table).high > 1
    estimate = mean_over_questions(table)
    assert 0 < estimate.low < right.low - 0.5
    assert estimate.high == 1.0


def test_paired_differences():
    results = paired_differences({"up": (BEFORE, AFTER), "none": (BEFORE, BEFORE), "single": (BEFORE[:1], AFTER)})
    assert results["up"]["value"] == pytest.approx((AFTER - BEFORE).mean())
    assert results["up"]["outcome"] == "better"
    assert results["none"] == {"value": 0, "low": 0, "high": 0, "n": 40, "outcome": "not distinguishable"}
    assert results["single"]["value"] == pytest.approx((AFTER - BEFORE[:1]).mean())
    reversed_result = paired_differences({"up": (BEFORE, AFTER)}, lower_is_better=True)["up"]
    # The difference keeps its sign; only the outcome is reversed.
    assert reversed_result["value"] == results["up"]["value"]
    assert reversed_result["outcome"] == "worse"
    unmeasured = paired_differences({"unmeasured": (np.full((2, 3), np.nan), np.full((2, 3), np.nan))})["unmeasured"]
    assert unmeasured["value"] is None


@pytest.mark.parametrize("seeds", [[1], [1, 1], [0, -1]])
def test_seeds_must_be_several_and_distinct(seeds):
    adapter = TypeAdapter(Seeds)
    assert adapter.validate_python([0, 2]) == [0, 2]
    with pytest.raises(ValidationError, match="two seeds or more"):
        adapter.validate_python(seeds)
