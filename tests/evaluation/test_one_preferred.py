"""Hit ratio, reciprocal rank and NDCG of one preferred candidate among many, against all orders of ties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.one_preferred import OnePreferred, TargetRank, one_preferred
from penchant.evaluation.preferences import ScoredGroup, evaluate_preferences
from penchant.evaluation.ranking import rank_by_reward
from penchant.evaluation.statistics import mean_of_shares

ABC = ("a", "b", "c")


@pytest.mark.parametrize(
    ("preference", "target"),
    [
        ({"preferred": 2}, 2),
        ({"ranks": (2, 1, 2)}, 1),
        ({"scores": (0.0, 0.0, 5.0)}, 2),
        ({"labels": (True, False, False)}, 0),
        ({"comparisons": ((1, 0), (1, 2))}, 1),
        ({"comparisons": ((1, 0),)}, None),  # c was not compared
        ({"comparisons": ((0, 1), (1, 2))}, None),
        ({"ranks": (1, 2, 3)}, None),  # a whole order, which top1, ndcg and kendall_tau are of
        ({"labels": (True, True, False)}, None),
        ({}, None),
    ],
)
def test_what_counts_as_one_preferred(preference, target):
    assert one_preferred(PreferenceGroup("p", ABC, **preference)) == target


def test_of_two_candidates_accuracy_says_it_all():
    assert one_preferred(PreferenceGroup("p", ("a", "b"), preferred=0)) is None


@pytest.mark.parametrize("scores", [(3, 2, 1, 0, 0), (1, 1, 1, 1, 1), (0, 2, 2, 1, 2), (5, 5, 0, 1, 2)])
@pytest.mark.parametrize("target", [0, 1, 4])
def test_ties_count_as_the_mean_over_their_orders(scores, target):
    """Every order of the candidates that sorts the scores, one by one."""
    orders = [
        order for order in itertools.permutations(range(5))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]  # fmt: skip
    ranks = [order.index(target) + 1 for order in orders]
    target_rank = TargetRank.by_scores(scores, target)
    for k in (1, 3, 5):
        assert target_rank.hit(k) == pytest.approx(np.mean([rank <= k for rank in ranks]))
        assert target_rank.ndcg(k) == pytest.approx(np.mean([(rank <= k) / math.log2(1 + rank) for rank in ranks]))
    assert target_rank.reciprocal() == pytest.approx(np.mean([1 / rank for rank in ranks]))


GROUPS = [
    PreferenceGroup("p", ABC, preferred=0),
    PreferenceGroup("q", (*ABC, "d", "e", "f"), preferred=5),
    PreferenceGroup("r", ("a", "b"), preferred=0),
    PreferenceGroup("s", ABC, ranks=(1, 2, 3)),
]
SCORES = [(1.0, 2.0, 2.0), (6.0, 5.0, 4.0, 3.0, 2.0, 1.0), (1.0, 0.0), (3.0, 2.0, 1.0)]


def test_in_evaluate_by_hand():
    """Of the first two groups alone: rank 3 of 3, and rank 6 of 6."""
    scored = [ScoredGroup(g, s, (1,) * len(s), None, 1) for g, s in zip(GROUPS, SCORES, strict=True)]
    report = evaluate_preferences(scored)
    assert report.groups == 4
    expected = {"hit_ratio@1": 0, "hit_ratio@5": 0.5, "mrr": (1 / 3 + 1 / 6) / 2, "ndcg@5": 0.25,
                "ndcg@10": (0.5 + 1 / math.log2(7)) / 2}  # fmt: skip
    for name, value in expected.items():
        for prefix in ("", "log_prob_", "mean_log_prob_"):
            estimate = report.metrics[prefix + name]
            assert (estimate.value, estimate.n) == (pytest.approx(value), 2)
            assert report.definitions[prefix + name].endswith("no other pair is known")
    assert "hit_ratio@10" not in report.metrics  # six candidates: always 1
    document = report.to_json()
    assert document["mrr"].keys() == {"value", "low", "high", "n"}
    assert document["mrr"]["low"] <= document["mrr"]["value"] <= document["mrr"]["high"]


def test_in_rank_by_hand():
    class FixedScores:
        name = "given"

        def __call__(self, prompts, responses):
            return [list(scores) for scores in SCORES]

    document = rank_by_reward(GROUPS, FixedScores()).to_json()
    assert document["mrr"]["value"] == pytest.approx(0.25)
    assert document["ndcg@10"]["value"] == pytest.approx((0.5 + 1 / math.log2(7)) / 2)
    assert document["mrr"].keys() == {"value", "low", "high", "n"}


def test_the_interval_resamples_prompts():
    """Both questions of one prompt are drawn together: no interval from one prompt alone."""
    groups = [PreferenceGroup("p", ABC, preferred=0), PreferenceGroup("p", ABC, preferred=1)]
    of_one_prompt = OnePreferred.from_groups(groups, np.array([0, 0])).compare(np.array([1.0, 0, 0, 1.0, 0, 0]))
    of_two_prompts = OnePreferred.from_groups(groups, np.array([0, 1])).compare(np.array([1.0, 0, 0, 1.0, 0, 0]))
    assert math.isnan(of_one_prompt["mrr"].low)
    assert of_two_prompts["hit_ratio@1"] == mean_of_shares([1, 0], [0, 1])


def test_data_of_pairs_has_none_of_them():
    report = evaluate_preferences([ScoredGroup(GROUPS[2], (1.0, 0.0), (1, 1), None, 1)])
    assert not any("@" in name or "mrr" in name for name in report.metrics)


def test_groups_of_other_kinds_between_them_change_nothing():
    single, ordered = (
        PreferenceGroup("p", ABC, preferred=2),
        PreferenceGroup("q", ("a", "b", "c", "d"), ranks=(1, 2, 3, 4)),
    )
    scores = [0.0, 1.0, 2.0], [9.0, 8.0, 7.0, 6.0]
    for groups, row in (([single], scores[0]), ([ordered, single], scores[1] + scores[0])):
        metrics = OnePreferred.from_groups(groups, np.arange(len(groups))).compare(np.array(row))
        assert (metrics["hit_ratio@1"].value, metrics["mrr"].value, metrics["mrr"].n) == (1.0, 1.0, 1)
