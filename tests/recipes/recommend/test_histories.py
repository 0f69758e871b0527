"""Questions from interactions: nothing looks ahead, nothing gives the target away."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from penchant.data.interactions import Interaction
from penchant.errors import DataError
from penchant.recipes.recommend.candidates import offer
from penchant.recipes.recommend.histories import Histories, Rules, build_histories

RULES = Rules(min_rating=5, min_count=3, min_history=2, max_history=4)


@pytest.fixture(scope="module")
def interactions(made) -> list[Interaction]:
    return made(60)


@pytest.fixture(scope="module")
def histories(interactions, titles) -> Histories:
    return build_histories(interactions, titles, RULES)


def test_by_hand():
    rows = [("a", "x", 1, 9), ("a", "y", 2, 9), ("a", "z", 2, 2), ("a", "w", 3, 9), ("a", "y", 4, 9), ("a", "v", 5, 9)]
    rows += [("b", "x", 0, 9), ("b", "y", 6, 9), ("b", "v", 7, 9), ("b", "w", 8, 9)]
    rules = Rules(min_rating=5, min_count=0, min_history=1, max_history=2, shares=(0.5, 0.25, 0.25))
    found = build_histories([Interaction(u, i, t, r) for u, i, t, r in rows], dict.fromkeys("vwxyz", "?"), rules)
    assert [(q.id, q.history, q.target) for q in found.train] == [("a/0", ("x",), "y"), ("a/1", ("x", "y"), "w")]
    assert [(q.id, q.history, q.target) for q in found.validation] == [
        ("a/2", ("y", "w"), "v"), ("b/0", ("x",), "y"),
    ]  # fmt: skip
    assert [(q.id, q.history, q.target) for q in found.test] == [("b/1", ("x", "y"), "v"), ("b/2", ("y", "v"), "w")]
    assert found.dropped["repeated interactions"] == 1
    assert found.dropped["interactions rated too low"] == 1
    assert found.dropped["interactions with too short a history"] == 2


def test_the_order_of_rows_changes_nothing(interactions, histories, titles):
    assert build_histories(interactions[::-1], titles, RULES) == histories


def test_a_history_is_strictly_before_its_target(histories):
    for question in (*histories.train, *histories.validation, *histories.test):
        assert RULES.min_history <= len(question.history) <= RULES.max_history
        assert all(histories.taken[question.user][item] < question.time for item in question.history)
        assert question.target not in question.history


def test_parts_follow_one_another_in_time(histories):
    assert max(q.time for q in histories.train) < min(q.time for q in histories.validation)
    assert max(q.time for q in histories.validation) < min(q.time for q in histories.test)


def test_the_future_changes_no_training_question(interactions, histories, titles):
    """Other interactions after training's end: same training questions, catalogue counts and boundary."""
    end = min(q.time for q in histories.validation)
    draw = random.Random(1)
    changed = [
        each if each.time < end else Interaction(each.user, f"i{draw.randrange(40)}", each.time, each.rating)
        for each in interactions
    ]
    liked = [each for each in interactions if each.rating >= RULES.min_rating]
    assert any(each.time >= end for each in liked)
    again = build_histories(changed, titles, RULES)
    before = min(end, min(q.time for q in again.validation))
    first, second = ([q for q in each.train if q.time < before] for each in (histories, again))
    assert first == second
    assert len(first) > 50


def test_equal_times_stay_in_one_part_and_out_of_histories():
    rows = [Interaction("a", item, time, None) for time in (1.0, 2.0, 3.0, 4.0) for item in (f"{time}x", f"{time}y")]
    found = build_histories(
        rows, {each.item: "?" for each in rows}, Rules(min_count=0, min_history=1, shares=(2, 1, 1))
    )
    assert {len(q.history) for q in found.train} <= {2, 4}
    assert {q.time for q in found.train}.isdisjoint(q.time for q in (*found.validation, *found.test))


def test_a_title_in_no_catalogue(interactions, titles):
    some = {item: title for item, title in titles.items() if item != "i7"}
    with pytest.raises(DataError, match="1 items have no title, the first is 'i7'"):
        build_histories(interactions, some, RULES)


def test_no_question_is_left(interactions, titles):
    with pytest.raises(DataError, match="no questions for training and validation and test"):
        build_histories(interactions, titles, Rules(min_history=50))
    with pytest.raises(DataError, match="no interaction is left"):
        build_histories(interactions, titles, Rules(min_rating=11))


@pytest.mark.parametrize("drawn", ["uniform", "popularity"])
def test_candidates(histories, drawn, titles):
    places = Counter()
    for question in histories.train:
        items = offer(question, histories, titles, until=5000.0, candidates=8, drawn=drawn)
        assert items == offer(question, histories, titles, until=5000.0, candidates=8, drawn=drawn)
        assert len(set(items)) == 8
        others = set(items) - {question.target}
        assert all(histories.taken[question.user].get(item, 9e9) >= 5000.0 for item in others)
        places[items.index(question.target)] += 1
    n = len(histories.train)
    # Uniform over 8 places: chi-square of 7 degrees of freedom, 0.999 quantile.
    assert sum((places[i] - n / 8) ** 2 / (n / 8) for i in range(8)) < 24.3


def test_popular_items_are_drawn_more_often(histories, titles):
    def popularity(drawn: str) -> float:
        sets = [offer(q, histories, titles, until=0.0, candidates=8, drawn=drawn) for q in histories.train]
        counts = [histories.counts[i] for q, s in zip(histories.train, sets, strict=True) for i in s if i != q.target]
        return sum(counts) / len(counts)

    assert popularity("popularity") > 1.03 * popularity("uniform")


def test_no_two_candidates_of_one_title(histories, titles):
    alike = {item: "One" if int(item[1:]) % 2 else title for item, title in titles.items()}
    for question in histories.test[:20]:
        offered = [alike[item] for item in offer(question, histories, alike, until=9e9, candidates=5)]
        assert len(set(offered)) == 5


def test_too_small_a_catalogue(histories, titles):
    with pytest.raises(DataError, match="to draw 39 others from"):
        offer(histories.test[0], histories, titles, until=9e9, candidates=40)
