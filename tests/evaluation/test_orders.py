"""Top-1, NDCG and Kendall's tau against hand-worked values and other implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.metrics import ndcg_score

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.orders import Orders, known_worth, order_metrics
from penchant.evaluation.preferences import ScoredGroup, evaluate_preferences
from penchant.evaluation.statistics import mean_of_shares


def metrics(worth: list[float], scores: list[float]) -> tuple[float, float, float]:
    return order_metrics(np.array(worth, dtype=np.float64), np.array(scores, dtype=np.float64))


IDEAL = 2 + 1 / math.log2(3)
"""DCG of gains 2, 1, 0 in their order."""


@pytest.mark.parametrize(
    ("worth", "scores", "expected"),
    [
        ([3, 2, 1], [-1, -2, -3], (1, 1, 1)),
        ([3, 2, 1], [-3, -2, -1], (0, (1 / math.log2(3) + 2 / 2) / IDEAL, -1)),
        # The first two the wrong way round: 2 of 3 pairs right.
        ([3, 2, 1], [-2, -1, -3], (0, (1 + 2 / math.log2(3)) / IDEAL, 1 / 3)),
        # A tie of the best with a worse one is wrong; they share the gains 2 and 1. Tau-b: 2 / sqrt(3 x 2).
        ([3, 2, 1], [-1, -1, -3], (0, 1.5 * (1 + 1 / math.log2(3)) / IDEAL, 2 / math.sqrt(6))),
        ([3, 2, 1], [0, 0, 0], (0, (1 + 1 / math.log2(3) + 1 / 2) / IDEAL, 0)),
        # Two are best: gains 1, 1, 0; either may come first, and a tie among them is right.
        ([2, 2, 1], [-1, -2, -3], (1, 1, 2 / math.sqrt(6))),
        ([2, 2, 1], [-1, -1, -3], (1, 1, 1)),
    ],
)
def test_by_hand(worth, scores, expected):
    assert metrics(worth, scores) == pytest.approx(expected)


def test_ties_and_all_as_others_do():
    draw = np.random.default_rng(0)
    for _ in range(300):
        k = int(draw.integers(3, 8))
        worth, scores = draw.integers(0, 4, k).astype(float), draw.integers(0, 5, k) / 4
        if worth.min() == worth.max():
            continue
        _, ndcg, tau = metrics(worth, scores)
        gains = [sum(other < value for other in worth) for value in worth]
        assert ndcg == pytest.approx(ndcg_score([gains], [scores]), abs=1e-12)
        theirs = kendalltau(worth, scores).statistic
        assert tau == pytest.approx(0.0 if math.isnan(theirs) else theirs, abs=1e-12)


def test_only_the_order_of_the_worths_counts():
    scores = [0.3, -0.1, 0.7, 0.2]
    assert metrics([1, 2, 3, 4], scores) == metrics([-9, 0.5, 0.6, 100], scores)


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ({"scores": (1.0, 3.0, 2.0)}, [1, 3, 2]),
        ({"ranks": (3, 1, 2)}, [-3, -1, -2]),
        ({"scores": (1.0, 1.0, 2.0), "ranks": (1, 2, 3)}, [1, 1, 2]),
        ({"scores": (1.0, 1.0, 1.0)}, None),
        ({"ranks": (1, 1, 1)}, None),
        ({"preferred": 0}, None),
        ({"labels": (True, False, False)}, None),
        ({"comparisons": ((0, 1),), "scores": (1.0, 3.0, 2.0)}, None),
        ({}, None),
    ],
)
def test_which_groups_have_an_order(preference, expected):
    worth = known_worth(PreferenceGroup("p", ("a", "b", "c"), **preference))
    assert (worth if worth is None else worth.tolist()) == expected


def test_a_pair_has_none():
    assert known_worth(PreferenceGroup("p", ("a", "b"), scores=(1.0, 2.0))) is None


def scored(prompt: str, log_probs: tuple[float, ...], **preference: object) -> ScoredGroup:
    group = PreferenceGroup(prompt, tuple("abcd"[: len(log_probs)]), **preference)
    return ScoredGroup(group, log_probs, (1,) * len(log_probs), None, 1)


def test_means_over_groups_and_intervals_over_prompts():
    groups = [
        scored("p", (-1.0, -2.0, -3.0), ranks=(1, 2, 3)),
        scored("p", (-1.0, -2.0), preferred=0),
        scored("q", (-1.0, -2.0, -3.0, -4.0), scores=(1.0, 2.0, 3.0, 4.0)),
        scored("q", (-1.0, -2.0, -3.0), scores=(1.0, 1.0, 1.0)),
    ]
    report = evaluate_preferences(groups)
    top, tau = report.metrics["top1"], report.metrics["kendall_tau"]
    assert top == mean_of_shares([1, 0], [0, 1])
    assert (tau.value, tau.low, tau.high, tau.n) == (0.0, -1.0, 1.0, 2)
    assert report.metrics["mean_log_prob_kendall_tau"] == tau
    assert "tau-b" in report.definitions["kendall_tau"]
    assert report.definitions["ndcg"].endswith("scores or ranks that are not all equal")
    assert report.metrics.keys() <= report.definitions.keys()


def test_the_interval_of_kendalls_tau_is_of_no_share():
    groups = [scored(prompt, (-1.0, -1.0, -1.0), ranks=(1, 2, 3)) for prompt in "pq"]
    tau = evaluate_preferences(groups).metrics["kendall_tau"]
    assert (tau.value, tau.low, tau.high) == (0.0, 0.0, 0.0)


def test_pairs_alone_have_no_such_metric():
    report = evaluate_preferences([scored("p", (-1.0, -2.0), preferred=0)])
    assert not [name for name in (*report.metrics, *report.definitions) if "tau" in name or "ndcg" in name]
    assert Orders.from_groups([], np.zeros(0, np.int64), 10, 0).compare(np.zeros(0)) == {}
