"""Ranking measures by hand, titles in answers, and baselines that must stay at chance."""

from __future__ import annotations

import itertools
import math

import pytest

from penchant.data.interactions import Interaction
from penchant.evaluation.statistics import mean_of_shares
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.candidates import offer
from penchant.recipes.recommend.histories import Rules, build_histories
from penchant.recipes.recommend.measures import TargetRank, named, ranking_measures, said_measures


def test_place_by_hand():
    rank = TargetRank.by_scores([3.0, 1.0, 2.0, 5.0], 2)
    assert rank == TargetRank(above=2, tied=1)
    assert [rank.hit(k) for k in (1, 2, 3)] == [0, 0, 1]
    assert rank.ndcg(5) == pytest.approx(1 / 2)
    assert rank.ndcg(2) == 0
    assert rank.reciprocal() == pytest.approx(1 / 3)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 0.0], [1.0, 2.0, 1.0, 1.0]])
def test_ties_are_the_mean_over_every_order(scores):
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
    measures = ranking_measures([TargetRank(0, 1), TargetRank(0, 1), TargetRank(3, 1)], ["a", "a", "b"], (1, 5))
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
    assert named(answer, ["Alien (1979)", "Up", "Heat", "Heat 2"]) == expected


def test_what_is_said_counts_when_valid_and_right():
    found = said_measures(["A", "A B", "C", ""], [["A", "B"]] * 2 + [["C", "D"]] * 2, [0, 0, 1, 1], list("wxyz"))
    assert found["said_hit_ratio@1"].value == 0.25
    assert found["valid_ratio"].value == 0.5


@pytest.fixture(scope="module")
def world(made, titles):
    histories = build_histories(made(400), titles, Rules(min_count=3, min_history=2))
    questions = [*histories.train, *histories.test]
    offers = {q.id: offer(q, histories, titles, until=9e9, candidates=10) for q in questions}
    return histories, offers


def hit_ratio(scorer, world):
    histories, offers = world
    ranks = [
        TargetRank.by_scores(scorer(q, offers[q.id]), offers[q.id].index(q.target)) for q in histories.test
    ]  # fmt: skip
    return ranking_measures(ranks, [q.user for q in histories.test], (1,))["hit_ratio@1"]


def test_baselines_that_read_no_history_are_at_chance(world):
    """Users of this world choose at random: nothing that looks at lists alone may do better than one in ten."""
    histories, offers = world
    assert hit_ratio(baselines.chance, world).value == pytest.approx(0.1)
    for scorer in (baselines.position(offers, histories.train), baselines.overlap(offers, histories.train)):
        found = hit_ratio(scorer, world)
        # Three standard errors: two of a share's are left one time in twenty without a leak.
        assert abs(found.value - 0.1) <= 3 * math.sqrt(0.1 * 0.9 / found.n)


def test_candidates_that_follow_from_the_target_are_found_out(world):
    """The authors' seeding: the same distractors and place whenever an item is the target."""
    histories, _ = world
    items = histories.items

    def betraying(target: str) -> tuple[str, ...]:
        index = items.index(target)
        return tuple(items[(index + shift * shift) % len(items)] for shift in range(10))

    offers = {q.id: betraying(q.target) for q in (*histories.train, *histories.test)}
    assert hit_ratio(baselines.overlap(offers, histories.train), (histories, offers)).low > 0.5
    assert hit_ratio(baselines.position(offers, histories.train), (histories, offers)).value == 1


def test_last_item_and_neighbours_find_what_follows(titles):
    """Users who go around a circle: the next item is known from the last, and near it."""
    rows = [
        Interaction(f"u{u}", f"i{(u + t) % 40}", float(100 * t + u % 40), None) for u in range(120) for t in range(12)
    ]
    histories = build_histories(rows, titles, Rules(min_count=1, min_history=2, max_history=3))
    offers = {q.id: offer(q, histories, titles, until=9e9, candidates=10) for q in histories.test}
    for scorer, least in ((baselines.last_item(histories), 0.99), (baselines.neighbours(histories), 0.9)):
        assert hit_ratio(scorer, (histories, offers)).value > least
    assert hit_ratio(baselines.popularity(histories), (histories, offers)).value < 0.5
