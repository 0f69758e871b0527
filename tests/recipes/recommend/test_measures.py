"""Tests of ranking metrics by hand, titles in answers, and baselines that must stay at chance."""

from __future__ import annotations

import itertools
import math

import pytest

from penchant.evaluation.statistics import mean_of_shares
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.histories import Interaction, Rules, build_histories
from penchant.recipes.recommend.prompts import draw_candidates
from penchant.recipes.recommend.questions import TargetRank, answer_metrics, named_titles, ranking_metrics


def test_rank_worked_out_by_hand():
    rank = TargetRank.by_scores([3.0, 1.0, 2.0, 5.0], 2)
    assert rank == TargetRank(n_higher=2, n_tied=1)
    assert [rank.hit(k) for k in (1, 2, 3)] == [0, 0, 1]
    assert rank.ndcg(5) == pytest.approx(1 / 2)
    assert rank.ndcg(2) == 0
    assert rank.reciprocal() == pytest.approx(1 / 3)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 1.0, 1.0]])
def test_ties_count_as_the_mean_over_every_order(scores):
    rank = TargetRank.by_scores(scores, 2)
    ranks = []
    for order in itertools.permutations(range(4)):
        ranked = sorted(range(4), key=lambda i: (-scores[i], order[i]))
        ranks.append(ranked.index(2) + 1)
    for k in (1, 2, 3):
        assert rank.hit(k) == pytest.approx(sum(rank <= k for rank in ranks) / len(ranks))
        expected = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k) / len(ranks)
        assert rank.ndcg(k) == pytest.approx(expected)
    assert rank.reciprocal() == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))


def test_means_and_intervals_over_users():
    measures = ranking_metrics([TargetRank(0, 1), TargetRank(0, 1), TargetRank(3, 1)], ["a", "a", "b"], (1, 5))
    assert measures["hit_ratio@1"].value == pytest.approx(2 / 3)
    assert measures["hit_ratio@5"].value == 1
    assert measures["ndcg@5"].value == pytest.approx((2 + 1 / math.log2(5)) / 3)
    assert measures["mrr"].value == pytest.approx((2 + 1 / 4) / 3)
    assert measures["hit_ratio@1"] == mean_of_shares([1, 1, 0], [0, 0, 1])  # two users


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Alien (1979)", (0,)),
        (" I would say alien (1979), of course", (0,)),
        ("Alien", ()),
        ("Up", (1,)),
        ("Upstream", ()),
        ("Heat and Up", (1, 2)),
        ("Heat 2", (3,)),
        ("Heat 2, then Heat", (2, 3)),
        ("", ()),
    ],
)
def test_titles_in_an_answer(answer, expected):
    assert named_titles(answer, ["Alien (1979)", "Up", "Heat", "Heat 2"]) == expected


def test_answers_count_if_valid_and_right():
    metrics = answer_metrics(["A", "A B", "C", ""], [["A", "B"]] * 2 + [["C", "D"]] * 2, [0, 0, 1, 1], list("wxyz"))
    assert metrics["said_hit_ratio@1"].value == 0.25
    assert metrics["valid_ratio"].value == 0.5


@pytest.fixture(scope="module")
def world(make_interactions, titles):
    histories = build_histories(make_interactions(400), titles, Rules(min_count=3, min_history=2))
    questions = [*histories.train, *histories.test]
    candidate_lists = {q.id: draw_candidates(q, histories, titles, until=9e9, count=10) for q in questions}
    return histories, candidate_lists


def hit_ratio(scorer, world):
    histories, candidate_lists = world
    ranks = [
        TargetRank.by_scores(scorer(q, candidate_lists[q.id]), candidate_lists[q.id].index(q.target))
        for q in histories.test
    ]
    return ranking_metrics(ranks, [q.user for q in histories.test], (1,))["hit_ratio@1"]


def test_baselines_that_read_no_history_are_at_chance(world):
    """The users choose at random: a baseline that reads the lists alone must have a hit ratio of one in ten."""
    histories, candidate_lists = world
    assert hit_ratio(baselines.chance, world).value == pytest.approx(0.1)
    for scorer in (
        baselines.position(candidate_lists, histories.train),
        baselines.overlap(candidate_lists, histories.train),
    ):
        share = hit_ratio(scorer, world)
        # The bound is three standard errors; without a leak a bound of two would fail one time in twenty.
        assert abs(share.value - 0.1) <= 3 * math.sqrt(0.1 * 0.9 / share.n)


def test_list_baselines_detect_candidates_that_depend_on_the_target(world):
    """The authors' seeding gives a target the same negatives and position every time."""
    histories, _ = world
    items = histories.items

    def candidates_of(target: str) -> tuple[str, ...]:
        index = items.index(target)
        return tuple(items[(index + shift * shift) % len(items)] for shift in range(10))

    candidate_lists = {q.id: candidates_of(q.target) for q in (*histories.train, *histories.test)}
    assert hit_ratio(baselines.overlap(candidate_lists, histories.train), (histories, candidate_lists)).low > 0.5
    assert hit_ratio(baselines.position(candidate_lists, histories.train), (histories, candidate_lists)).value == 1


def test_last_item_and_neighbours_find_what_follows(titles):
    """Users take items in a circle, so that the last item determines the next one."""
    rows = [
        Interaction(f"u{u}", f"i{(u + t) % 40}", float(100 * t + u % 40), None) for u in range(120) for t in range(12)
    ]
    histories = build_histories(rows, titles, Rules(min_count=1, min_history=2, max_history=3))
    candidate_lists = {q.id: draw_candidates(q, histories, titles, until=9e9, count=10) for q in histories.test}
    for scorer, lower_bound in ((baselines.last_item(histories), 0.99), (baselines.neighbours(histories), 0.9)):
        assert hit_ratio(scorer, (histories, candidate_lists)).value > lower_bound
    assert hit_ratio(baselines.popularity(histories), (histories, candidate_lists)).value < 0.5
