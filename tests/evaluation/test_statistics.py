from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from penchant.evaluation import statistics
from penchant.evaluation.statistics import (
    Estimate,
    bootstrap_auc,
    bootstrap_mean,
    bootstrap_ratio,
    proportion,
    roc_auc,
)

few_levels = st.lists(st.integers(-2, 2), min_size=1, max_size=12)


def test_auc_by_hand() -> None:
    # 1 > 0; 1 < 2; 2 > 0; 2 = 2: 1 + 0 + 1 + 1/2 of 4.
    assert roc_auc([1, 2], [0, 2]) == 0.625
    assert roc_auc([3, 4, 5], [1, 2]) == 1
    assert roc_auc([1], [2]) == 0
    assert roc_auc([7, 7, 7], [7]) == 0.5
    assert math.isnan(roc_auc([], [1]))
    assert math.isnan(roc_auc([1], []))


@given(few_levels, few_levels)
def test_auc_is_sklearns_with_ties(positive: list[int], negative: list[int]) -> None:
    labels = [1] * len(positive) + [0] * len(negative)
    assert roc_auc(positive, negative) == pytest.approx(roc_auc_score(labels, positive + negative), abs=1e-12)


@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 4)), min_size=1, max_size=12))
def test_weighted_auc_is_sklearns(rows: list[tuple[int, int, int]]) -> None:
    rows = [(*rows[0][:2], 1), *rows]
    positive, negative, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    ours = statistics._WeightedAuc.of(positive, negative)(np.stack([weights, np.ones_like(weights)]))
    labels, scores = np.repeat([1, 0], len(rows)), np.concatenate([positive, negative])
    theirs = [
        roc_auc_score(labels, scores, sample_weight=np.tile(weights, 2)),
        roc_auc_score(labels, scores),
    ]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_mean_of_clusters_of_different_size_by_hand() -> None:
    # Clusters {0} and {1, 1, 1}: a resample's mean is 0, 3/4 or 1, with probability 1/4, 1/2, 1/4.
    assert bootstrap_mean([0, 1, 1, 1], [5, 9, 9, 9]) == Estimate(0.75, 0.0, 1.0, 4)


def test_auc_of_two_clusters_by_hand() -> None:
    # Cluster 0 alone has area 1, cluster 1 alone 0; both together: 3 > 2, 3 > 1, 0 < 2, 0 < 1.
    assert bootstrap_auc([3, 0], [2, 1], [0, 1]) == Estimate(0.5, 0.0, 1.0, 2)


def test_auc_interval_is_that_of_repeated_rows() -> None:
    generator = np.random.default_rng(1)
    clusters = generator.integers(25, size=60)
    positive, negative = np.round(generator.normal(size=(2, 60)) + np.array([[0.5], [0.0]]), 1)
    members = [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    naive = []
    for _ in range(1500):
        rows = np.concatenate([members[c] for c in generator.integers(len(members), size=len(members))])
        naive.append(roc_auc(positive[rows], negative[rows]))
    ours = bootstrap_auc(positive, negative, clusters, resamples=4000)
    assert ours.value == roc_auc(positive, negative)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(naive, (0.025, 0.975)), abs=0.012)


def test_members_of_a_cluster_are_drawn_together() -> None:
    values = np.random.default_rng(0).normal(size=40)
    once = bootstrap_mean(values, np.arange(40))
    twice = bootstrap_mean(np.repeat(values, 2), np.repeat(np.arange(40), 2))
    apart = bootstrap_mean(np.repeat(values, 2), np.arange(80))
    assert (twice.low, twice.high) == pytest.approx((once.low, once.high))
    assert (apart.high - apart.low) / (once.high - once.low) == pytest.approx(1 / math.sqrt(2), abs=0.08)


def test_same_seed_same_interval_whatever_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    scores, clusters = generator.normal(size=(2, 33)), np.arange(33) // 2
    whole = bootstrap_mean(scores[0], clusters, seed=3), bootstrap_auc(*scores, clusters, seed=3)
    monkeypatch.setattr(statistics, "_BLOCK", 100)
    assert (bootstrap_mean(scores[0], clusters, seed=3), bootstrap_auc(*scores, clusters, seed=3)) == whole
    assert bootstrap_mean(scores[0], clusters, seed=4) != whole[0]


def test_no_interval_from_one_cluster_and_no_value_from_nothing() -> None:
    one = bootstrap_mean([1, 2], [7, 7]).to_json()
    assert one == {"value": 1.5, "low": None, "high": None, "n": 2}
    assert bootstrap_auc([1, 2], [0, 2], [7, 7]).to_json() == {"value": 0.625, "low": None, "high": None, "n": 2}
    nothing = {"value": None, "low": None, "high": None, "n": 0}
    assert bootstrap_mean([], []).to_json() == bootstrap_auc([], [], []).to_json() == nothing


def test_estimate_to_json_keeps_numbers() -> None:
    assert Estimate(0.5, 0.25, 0.75, 3).to_json() == {"value": 0.5, "low": 0.25, "high": 0.75, "n": 3}


def test_auc_scores_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="2 positive scores but 1 negative"):
        bootstrap_auc([1, 2], [1], [0, 1])


def test_interval_of_the_mean_covers_the_truth() -> None:
    generator, covered = np.random.default_rng(0), 0
    for trial in range(400):
        clusters = np.repeat(np.arange(60), generator.integers(1, 5, size=60))
        values = 0.3 + generator.normal(size=60)[clusters] + generator.normal(size=len(clusters))
        interval = bootstrap_mean(values, clusters, resamples=400, seed=trial)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


def test_interval_of_the_auc_covers_the_truth() -> None:
    generator, covered, truth = np.random.default_rng(0), 0, NormalDist().cdf(0.5 / math.sqrt(2))
    for trial in range(400):
        # A prompt's two scores are alike, as they are in a model: the pooled area must not take them for independent.
        clusters = np.arange(80) // 2
        common = math.sqrt(0.5) * generator.normal(size=40)[clusters]
        positive, negative = common + math.sqrt(0.5) * generator.normal(size=(2, 80))
        interval = bootstrap_auc(positive + 0.5, negative, clusters, resamples=300, seed=trial)
        covered += interval.low <= truth <= interval.high
    assert 0.91 <= covered / 400 <= 0.98


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (3, 10), (81, 263)])
def test_a_proportions_bounds_solve_wilsons_equation(successes, n):
    """A bound p is where the share is 1.96 standard errors of p away."""
    found = proportion(successes, n)
    assert found.value == successes / n
    for bound in (found.low, found.high):
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(found.value - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5)
    assert found.low <= found.value <= found.high
    assert found.high - found.low > 0.05
    assert math.isnan(proportion(0, 0).value)


def test_a_ratio_of_sums():
    above, below, clusters = [1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 4.0, 4.0], [0, 0, 1, 1]
    found = bootstrap_ratio(above, below, clusters)
    assert found.value == 1.0
    # Two clusters: both of one, or one of each.
    assert (found.low, found.high) == (3 / 4, 9 / 8)
    assert math.isnan(bootstrap_ratio([1.0], [0.0], [0]).value)
    same = bootstrap_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], [0, 1, 2])
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)
