"""Tests of questions made of interactions: no future information, and no candidates that reveal the target."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from penchant.errors import DataError
from penchant.recipes.recommend.histories import Histories, Interaction, Rules, build_histories
from penchant.recipes.recommend.prompts import draw_candidates

RULES = Rules(min_rating=5, min_count=3, min_history=2, max_history=4)


@pytest.fixture(scope="module")
def interactions(make_interactions) -> list[Interaction]:
    return make_interactions(60)


@pytest.fixture(scope="module")
def histories(interactions, titles) -> Histories:
    return build_histories(interactions, titles, RULES)


def test_questions_worked_out_by_hand():
    rows = [("a", "x", 1, 9), ("a", "y", 2, 9), ("a", "z", 2, 2), ("a", "w", 3, 9), ("a", "y", 4, 9), ("a", "v", 5, 9)]
    rows += [("b", "x", 0, 9), ("b", "y", 6, 9), ("b", "v", 7, 9), ("b", "w", 8, 9)]
    rules = Rules(min_rating=5, min_count=0, min_history=1, max_history=2, shares=(0.5, 0.25, 0.25))
    histories = build_histories([Interaction(u, i, t, r) for u, i, t, r in rows], dict.fromkeys("vwxyz", "?"), rules)
    assert [(q.id, q.history, q.target) for q in histories.train] == [("a/0", ("x",), "y"), ("a/1", ("x", "y"), "w")]
    assert [(q.id, q.history, q.target) for q in histories.validation] == [
        ("a/2", ("y", "w"), "v"), ("b/0", ("x",), "y"),
    ]  # fmt: skip
    assert [(q.id, q.history, q.target) for q in histories.test] == [("b/1", ("x", "y"), "v"), ("b/2", ("y", "v"), "w")]
    assert histories.dropped["repeated interactions"] == 1
    assert histories.dropped["interactions rated too low"] == 1
    assert histories.dropped["interactions with too short a history"] == 2


def test_the_order_of_rows_changes_nothing(interactions, histories, titles):
    assert build_histories(interactions[::-1], titles, RULES) == histories


def test_a_history_is_strictly_before_its_target(histories):
    for question in (*histories.train, *histories.validation, *histories.test):
        assert RULES.min_history <= len(question.history) <= RULES.max_history
        assert all(histories.times_by_user[question.user][item] < question.time for item in question.history)
        assert question.target not in question.history


def test_parts_follow_one_another_in_time(histories):
    assert max(q.time for q in histories.train) < min(q.time for q in histories.validation)
    assert max(q.time for q in histories.validation) < min(q.time for q in histories.test)


def test_the_future_changes_no_training_question(interactions, histories, titles):
    """With other interactions after training's end the training questions are the same."""
    end = min(q.time for q in histories.validation)
    draw = random.Random(1)
    other_interactions = [
        row if row.time < end else Interaction(row.user, f"i{draw.randrange(40)}", row.time, row.rating)
        for row in interactions
    ]
    liked = [interaction for interaction in interactions if interaction.rating >= RULES.min_rating]
    assert any(interaction.time >= end for interaction in liked)
    other_histories = build_histories(other_interactions, titles, RULES)
    first_end = min(end, min(q.time for q in other_histories.validation))
    questions = [q for q in histories.train if q.time < first_end]
    other_questions = [q for q in other_histories.train if q.time < first_end]
    assert questions == other_questions
    assert len(questions) > 50


def test_equal_times_stay_in_one_part_and_out_of_histories():
    rows = [Interaction("a", item, time, None) for time in (1.0, 2.0, 3.0, 4.0) for item in (f"{time}x", f"{time}y")]
    histories = build_histories(
        rows, {row.item: "?" for row in rows}, Rules(min_count=0, min_history=1, shares=(2, 1, 1))
    )
    assert {len(q.history) for q in histories.train} <= {2, 4}
    assert {q.time for q in histories.train}.isdisjoint(q.time for q in (*histories.validation, *histories.test))


def test_an_item_without_a_title(interactions, titles):
    titles_without_one = {item: title for item, title in titles.items() if item != "i7"}
    with pytest.raises(DataError, match="1 items have no title, the first is 'i7'"):
        build_histories(interactions, titles_without_one, RULES)


def test_no_question_is_left(interactions, titles):
    with pytest.raises(DataError, match="no questions for training and validation and test"):
        build_histories(interactions, titles, Rules(min_history=50))
    with pytest.raises(DataError, match="no interaction is left"):
        build_histories(interactions, titles, Rules(min_rating=11))


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
def test_candidates_and_the_targets_position(histories, sampling, titles):
    positions = Counter()
    for question in histories.train:
        items = draw_candidates(question, histories, titles, until=5000.0, count=8, sampling=sampling)
        assert items == draw_candidates(question, histories, titles, until=5000.0, count=8, sampling=sampling)
        assert len(set(items)) == 8
        negatives = set(items) - {question.target}
        assert all(histories.times_by_user[question.user].get(item, 9e9) >= 5000.0 for item in negatives)
        positions[items.index(question.target)] += 1
    n = len(histories.train)
    # Uniform over 8 positions: chi-square of 7 degrees of freedom, 0.999 quantile.
    assert sum((positions[i] - n / 8) ** 2 / (n / 8) for i in range(8)) < 24.3


def test_popular_items_are_drawn_more_often(histories, titles):
    def popularity(sampling: str) -> float:
        counts = [
            histories.counts[item]
            for question in histories.train
            for item in draw_candidates(question, histories, titles, until=0.0, count=8, sampling=sampling)
            if item != question.target
        ]
        return sum(counts) / len(counts)

    assert popularity("popularity") > 1.03 * popularity("uniform")


def test_no_two_candidates_of_one_title(histories, titles):
    shared_titles = {item: "One" if int(item[1:]) % 2 else title for item, title in titles.items()}
    for question in histories.test[:20]:
        items = draw_candidates(question, histories, shared_titles, until=9e9, count=5)
        candidate_titles = [shared_titles[item] for item in items]
        assert len(set(candidate_titles)) == 5


def test_a_catalogue_that_is_too_small(histories, titles):
    with pytest.raises(DataError, match="to draw 39 others from"):
        draw_candidates(histories.test[0], histories, titles, until=9e9, count=40)
