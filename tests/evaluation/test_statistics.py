from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from penchant.evaluation import statistics
from penchant.evaluation.statistics import (
    Estimate,
    bootstrap_auc,
    bootstrap_mean,
    bootstrap_ratio,
    difference_of_shares,
    mean_of_shares,
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


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 4)), min_size=1, max_size=12))
def test_weighted_auc_is_sklearns(rows: list[tuple[int, int, int]]) -> None:
    rows = [(*rows[0][:2], 1), *rows]
    positive, negative, weights = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
    ours = statistics._WeightedAuc.from_scores(positive, negative)(np.stack([weights, np.ones_like(weights)]))
    labels, scores = np.repeat([1, 0], len(rows)), np.concatenate([positive, negative])
    theirs = [
        roc_auc_score(labels, scores, sample_weight=np.tile(weights, 2)),
        roc_auc_score(labels, scores),
    ]
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_mean_of_clusters_of_different_size_by_hand() -> None:
    # Clusters {0} and {2, 2, 2}: a resample's mean is 0, 3/2 or 2, with probability 1/4, 1/2, 1/4.
    assert bootstrap_mean([0, 2, 2, 2], [5, 9, 9, 9]) == Estimate(1.5, 0.0, 2.0, 4)


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
    single = bootstrap_mean(values, np.arange(40))
    twice = bootstrap_mean(np.repeat(values, 2), np.repeat(np.arange(40), 2))
    apart = bootstrap_mean(np.repeat(values, 2), np.arange(80))
    assert (twice.low, twice.high) == pytest.approx((single.low, single.high))
    assert (apart.high - apart.low) / (single.high - single.low) == pytest.approx(1 / math.sqrt(2), abs=0.08)


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
    empty_estimate = {"value": None, "low": None, "high": None, "n": 0}
    assert bootstrap_mean([], []).to_json() == bootstrap_auc([], [], []).to_json() == empty_estimate


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


@pytest.mark.parametrize(("successes", "n"), [(0, 5), (5, 5), (3, 10), (81, 263), (19, 20)])
def test_a_share_is_agresti_and_coulls_with_students_quantile(successes, n):
    estimate = proportion(successes, n)
    t = stats.t.isf(0.025, n - 1)
    centre = (successes + t * t / 2) / (n + t * t)
    half = t * math.sqrt(centre * (1 - centre) / (n + t * t))
    assert estimate.value == successes / n
    assert estimate.low == pytest.approx(max(0.0, centre - half))
    assert estimate.high == pytest.approx(min(1.0, centre + half))
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.high - estimate.low > 0.05
    assert math.isnan(proportion(0, 0).value)


def test_a_mean_of_yes_and_no_is_a_share():
    right = [1.0] * 20
    estimate = bootstrap_mean(right, range(20))
    assert estimate == proportion(20, 20) == mean_of_shares(right, range(20))
    assert 0.75 < estimate.low < 0.85
    assert estimate.high == 1.0
    # Copies of whole clusters are no more observations, whatever the order.
    repeated = mean_of_shares(np.tile([1.0, 0.0, 1.0, 1.0, 0.0], 4), np.tile(np.arange(5), 4))
    single = mean_of_shares([1.0, 0.0, 1.0, 1.0, 0.0], range(5))
    assert (repeated.low, repeated.high, repeated.n) == (pytest.approx(single.low), pytest.approx(single.high), 20)


def test_ties_count_for_less_than_wins_and_losses():
    ties, decided = mean_of_shares([0.5] * 20, range(20)), mean_of_shares([1.0, 0.0] * 10, range(20))
    t = stats.t.isf(0.025, 19)
    # Twenty observations without a spread, and t² pseudo-observations half a unit away.
    half = t * math.sqrt(t * t / 4 / (20 + t * t) ** 2)
    assert (ties.value, ties.high - 0.5) == (0.5, pytest.approx(half))
    assert half < decided.high - 0.5


def test_values_that_stay_off_the_bounds_are_no_shares():
    """As of BERTScore: pseudo-observations at 0 and 1 would double the interval."""
    values = np.random.default_rng(0).normal(0.85, 0.03, 100)
    estimate = bootstrap_mean(values, range(100))
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * 0.003, rel=0.25)
    assert mean_of_shares(values, range(100)).high - mean_of_shares(values, range(100)).low > 0.03


def test_a_difference_of_shares_is_agresti_and_mins():
    ours, baseline = [1.0] * 6 + [0.0] * 2 + [1.0] * 32, [0.0] * 6 + [1.0] * 2 + [1.0] * 32
    estimate = difference_of_shares(ours, baseline, range(40))
    t = stats.t.isf(0.025, 39)
    total, up, down = 40 + t * t / 2, 6 + t * t / 8, 2 + t * t / 8
    half = t * math.sqrt(((up + down) / total - ((up - down) / total) ** 2) / total)
    assert estimate.value == 0.1
    assert (estimate.low, estimate.high) == pytest.approx(((up - down) / total - half, (up - down) / total + half))
    no_difference = difference_of_shares([1.0] * 20, [1.0] * 20, range(20))
    assert no_difference.low == -no_difference.high
    assert 0.05 < no_difference.high < 0.2


def test_one_cluster_of_shares_has_no_interval():
    assert mean_of_shares([1.0, 0.0], [3, 3]).to_json() == {"value": 0.5, "low": None, "high": None, "n": 2}
    assert mean_of_shares([], []).to_json() == {"value": None, "low": None, "high": None, "n": 0}


def test_an_area_of_one_is_not_certain():
    estimate = bootstrap_auc([3.0] * 20, [1.0] * 20, np.arange(20) // 2)
    assert estimate == Estimate(1.0, proportion(10, 10).low, 1.0, 20)
    assert bootstrap_auc([1.0] * 20, [3.0] * 20, range(20)).high == proportion(0, 20).high


@pytest.mark.parametrize("n", [20, 50, 200, 1000])
def test_intervals_of_shares_cover_every_share(n):
    """Exactly, by the binomial distribution: the percentile bootstrap covers 0.69 at n = 20 and a share of 0.95."""
    estimates = [proportion(k, n) for k in range(n + 1)]
    low, high = np.array([estimate.low for estimate in estimates]), np.array([estimate.high for estimate in estimates])
    shares = np.linspace(0.5, 0.99, 99)
    chance = stats.binom.pmf(np.arange(n + 1), n, shares[:, None])
    covered = (chance * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(1)
    assert covered.min() >= 0.93
    assert covered.mean() <= 0.98


@pytest.mark.parametrize(("clusters", "is_shared"), [(20, 0.2), (20, 0.8), (60, 0.4)])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_intervals_of_clustered_shares_cover(clusters, is_shared, share):
    """One to seven answers a prompt, of which some prompts get more right than others."""
    draw, covered, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        cluster = np.repeat(np.arange(clusters), draw.integers(1, 8, clusters))
        chance = draw.beta(share * (1 / is_shared - 1), (1 - share) * (1 / is_shared - 1), clusters)
        estimate = bootstrap_mean(draw.random(len(cluster)) < chance[cluster], cluster)
        covered += estimate.low <= share <= estimate.high
    # Two standard errors of the simulation below 93 %.
    assert covered / runs >= 0.905


def test_a_ratio_of_sums():
    numerators, denominators, clusters = [1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 4.0, 4.0], [0, 0, 1, 1]
    ratio = bootstrap_ratio(numerators, denominators, clusters)
    assert ratio.value == 1.0
    # Two clusters: both of one, or one of each.
    assert (ratio.low, ratio.high) == (3 / 4, 9 / 8)
    assert math.isnan(bootstrap_ratio([1.0], [0.0], [0]).value)
    constant = bootstrap_ratio([2.0, 4.0, 8.0], [1.0, 2.0, 4.0], [0, 1, 2])
    assert (constant.value, constant.low, constant.high) == (2.0, 2.0, 2.0)
