"""A method's own values have an interval over seeds and prompts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penchant.comparison.results_cache import Cell, Comparison
from penchant.comparison.summary import summarise
from penchant.evaluation.statistics import Estimate, mean_of_shares


def estimate_of(table: np.ndarray, metric: str) -> Estimate:
    """The estimate of [S, N] values of one method."""
    cells = [
        Cell(
            method="dpo",
            settings={},
            size=10,
            seed=seed,
            folder="",
            metrics={metric: float(row.mean())},
            values={metric: {f"group {number}": value for number, value in enumerate(row.tolist())}},
            sources={},
            curves={},
            cost={},
            failed=None,
        )
        for seed, row in enumerate(table)
    ]
    (row,) = summarise(Comparison("t", "dpo", "m", "d", cells, {}, {}, metric, [], "", None)).rows
    return row.metrics[metric]


@pytest.mark.parametrize("metric", ["accuracy", "win_rate", "reward", "top1"])
def test_a_method_that_is_right_with_every_seed_is_not_certain_to_be(metric):
    estimate = estimate_of(np.ones((3, 20)), metric)
    assert estimate == Estimate(1.0, mean_of_shares(np.ones(20), range(20)).low, 1.0, 3)
    assert estimate.low < 0.8
    assert estimate_of(np.zeros((3, 20)), metric).high > 0.2


def test_seeds_that_agree_leave_the_error_of_prompts():
    table = np.tile(np.repeat([1.0, 0.0], [80, 20]), (3, 1))
    estimate, over_prompts = estimate_of(table, "accuracy"), mean_of_shares(table[0], range(100))
    # But for half a prompt that an effective size counts more.
    assert estimate.low == pytest.approx(over_prompts.low, abs=0.002)
    assert estimate.high == pytest.approx(over_prompts.high, abs=0.002)


@pytest.mark.parametrize("metric", ["kl", "words", "margin", "mean_log_prob_kendall_tau"])
def test_values_without_bounds_are_no_shares(metric):
    estimate = estimate_of(np.random.default_rng(0).integers(0, 2, (3, 40)).astype(np.float64), metric)
    assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)


def test_an_area_stays_inside_its_bounds_and_is_never_certain():
    estimates = []
    for areas in ((0.9, 0.95, 1.0), (1.0, 1.0, 1.0)):
        cells = [Cell("dpo", {}, 10, seed, "", {"auc": area}, {}, {}, {}, {}, None) for seed, area in enumerate(areas)]
        (row,) = summarise(Comparison("t", "dpo", "m", "d", cells, {}, {}, "auc", [], "", None)).rows
        estimates.append(row.metrics["auc"])
    unequal_areas, equal_areas = estimates
    assert unequal_areas.low < 0.9
    assert unequal_areas.high == 1.0
    assert math.isnan(equal_areas.low)
