"""A mean over seeds and prompts: by hand, where all agree, and simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from penchant.evaluation.comparisons import across_seeds, paired_difference
from penchant.evaluation.seed_means import mean_over_seeds, unbounded_mean_over_seeds
from penchant.evaluation.statistics import mean_of_shares
from penchant.evaluation.variance_components import components


def test_a_share_by_hand():
    # Seeds right in 10, 7 and 4 of 10 prompts.
    table = np.zeros((3, 10))
    table[0, :] = table[1, :7] = table[2, 3:7] = 1.0
    estimate = mean_over_seeds(table, range(10))
    error, distribution = components(table).error(3, 10)
    # As many observations of 0.7 x 0.3 as have the error, and the pseudo-observations of the mixture's quantile.
    sample, t = 0.21 / error**2, distribution.critical_value(0.05)
    total = sample + t * t
    centre = (0.7 * sample + t * t / 2) / total
    half = t * math.sqrt(centre * (1 - centre) / total)
    assert sample < 10
    assert stats.t.isf(0.025, 9) < t < stats.t.isf(0.025, 2)
    assert (estimate.value, estimate.n) == (pytest.approx(0.7), 10)
    assert (estimate.low, estimate.high) == (pytest.approx(max(0, centre - half)), pytest.approx(min(1, centre + half)))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_seeds_that_are_all_right_or_all_wrong_are_not_certain(right):
    table = np.full((5, 20), right)
    assert across_seeds(table.mean(axis=1)).to_json()["low"] is None
    over_prompts, estimate = mean_of_shares(table[0], range(20)), mean_over_seeds(table, range(20))
    assert (estimate.value, estimate.low, estimate.high) == (right, over_prompts.low, over_prompts.high)
    assert estimate.high - estimate.low > 0.15


def test_groups_of_one_prompt_are_one_observation():
    table = np.tile(np.random.default_rng(0).integers(0, 2, 30), (3, 1)).astype(np.float64)
    single, apart = mean_over_seeds(table, range(30)), mean_over_seeds(np.tile(table, 4), range(120))
    repeated = mean_over_seeds(np.tile(table, 4), [*range(30)] * 4)
    assert repeated.n == single.n == 30
    assert (repeated.low, repeated.high) == (pytest.approx(single.low), pytest.approx(single.high))
    assert apart.high - apart.low < 0.6 * (single.high - single.low)


def test_values_without_bounds_have_a_symmetric_interval():
    table = np.random.default_rng(0).normal(0.5, 1, (3, 40))
    estimate, difference = mean_over_seeds(table, range(40)), paired_difference(table, 0 * table)
    assert (estimate.low, estimate.high) == (pytest.approx(difference.low), pytest.approx(difference.high))
    # A distance of 0 or 1 nats is no share.
    distances = np.random.default_rng(0).integers(0, 2, (3, 40)).astype(np.float64)
    unbounded = unbounded_mean_over_seeds(distances, range(40))
    assert unbounded.high - unbounded.value == pytest.approx(unbounded.value - unbounded.low)
    assert mean_over_seeds(distances, range(40)) != unbounded


@pytest.mark.parametrize("shape", [(1, 20), (3, 1), (3, 0)])
def test_one_seed_or_prompt_has_no_interval(shape):
    for function in (mean_over_seeds, unbounded_mean_over_seeds):
        estimate = function(np.ones(shape), range(shape[1]))
        assert math.isnan(estimate.low)
        assert math.isnan(estimate.high)
        assert estimate.n == shape[1]


def test_a_group_counts_that_every_seed_has():
    table = np.array([[1.0, 0.0, 1.0, math.nan], [1.0, 1.0, 0.0, 1.0], [0.0, 1.0, 1.0, 1.0]])
    assert mean_over_seeds(table, range(4)) == mean_over_seeds(table[:, :3], range(3))
