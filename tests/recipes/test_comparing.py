"""Estimates and differences over seeds and questions."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from penchant.evaluation.comparisons import paired_difference
from penchant.evaluation.statistics import bootstrap_mean, mean_of_shares
from penchant.recipes.comparing import Seeds, differences, over_seeds

DRAW = np.random.default_rng(0)
BEFORE = DRAW.normal(size=(3, 40))
AFTER = BEFORE + 1 + 0.1 * DRAW.normal(size=(3, 40))


def test_estimates():
    found, expected = over_seeds(AFTER), paired_difference(AFTER, 0 * AFTER)
    assert (found.value, found.n) == (pytest.approx(AFTER.mean()), 40)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    single = np.array([[1.0, np.nan, 3.0, 5.0]])
    assert over_seeds(single) == bootstrap_mean([1, 3, 5], range(3))


def test_shares_that_all_seeds_agree_on_are_not_certain():
    right, over_questions = over_seeds(np.ones((3, 20))), mean_of_shares(np.ones(20), range(20))
    assert (right.value, right.low, right.high, right.n) == (1.0, over_questions.low, 1.0, 20)
    # One seed is much worse: the interval over seeds is wider, and ends at 1.
    table = np.ones((3, 20))
    table[2, :10] = 0.0
    assert paired_difference(table, 0 * table).high > 1
    estimate = over_seeds(table)
    assert 0 < estimate.low < right.low - 0.5
    assert estimate.high == 1.0


def test_differences():
    found = differences({"up": (BEFORE, AFTER), "none": (BEFORE, BEFORE), "single": (BEFORE[:1], AFTER)})
    assert found["up"]["value"] == pytest.approx((AFTER - BEFORE).mean())
    assert found["up"]["outcome"] == "better"
    assert found["none"] == {"value": 0, "low": 0, "high": 0, "n": 40, "outcome": "not distinguishable"}
    assert found["single"]["value"] == pytest.approx((AFTER - BEFORE[:1]).mean())
    turned = differences({"up": (BEFORE, AFTER)}, lower_is_better=True)["up"]
    # The numbers stay; which of the two is better turns.
    assert turned["value"] == found["up"]["value"]
    assert turned["outcome"] == "worse"
    nothing = differences({"unmeasured": (np.full((2, 3), np.nan), np.full((2, 3), np.nan))})["unmeasured"]
    assert nothing["value"] is None


@pytest.mark.parametrize("seeds", [[1], [1, 1], [0, -1]])
def test_seeds(seeds):
    adapter = TypeAdapter(Seeds)
    assert adapter.validate_python([0, 2]) == [0, 2]
    with pytest.raises(ValidationError, match="two seeds or more"):
        adapter.validate_python(seeds)
