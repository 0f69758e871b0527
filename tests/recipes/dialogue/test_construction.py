"""Preferences from votes, and what the filters leave out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.errors import DataError
from penchant.recipes.dialogue.construction import Answered, Filters, for_review, from_votes

CRISIS = "I want to die."


def texts(groups):
    return [group.candidates for group in groups]


def test_every_pair_that_differs_enough():
    answers = [Answered("q", "a", 3), Answered("q", "b", 1), Answered("q", "c", 1), Answered("other", "d", 9)]
    groups, dropped = from_votes(answers, Filters())
    assert texts(groups) == [("a", "b"), ("a", "c")]
    assert groups[0].scores == (3, 1)
    assert groups[0].pairs == ((0, 1),)
    assert dropped == {"votes too close": 1}
    with pytest.raises(DataError, match="no pair is left: 3 votes too close"):
        from_votes(answers, Filters(least_margin=5))


def test_no_more_than_so_many_of_a_question_the_widest_first():
    answers = [Answered("q", str(n), n) for n in range(4)]
    groups, dropped = from_votes(answers, Filters(per_question=2))
    assert texts(groups) == [("3", "0"), ("2", "0")]
    assert dropped == {"more pairs than one question may have": 4}


def test_safety_and_facts():
    answers = [
        Answered(CRISIS, "Cheer up.", 5),
        Answered(CRISIS, "Please call 988.", 3),
        Answered(CRISIS, "No.", 0),
        Answered("How much?", "Take 50 mg.", 5, source="5 mg a day"),
        Answered("How much?", "Take 5 mg.", 3, source="5 mg a day"),
        Answered("How much?", "Ask.", 0, source="5 mg a day"),
        Answered("Same?", "One  text", 2),
        Answered("Same?", "One text ", 1),
    ]
    groups, dropped = from_votes(answers, Filters())
    assert texts(groups) == [("Please call 988.", "No."), ("Take 5 mg.", "Ask.")]
    assert dropped == {
        "a crisis, and the better answer names no help": 2,
        "the better answer goes beyond its source": 2,
        "the two answers are one": 1,
    }
    loose = Filters(crisis_needs_referral=False, most_unsupported=1)
    assert len(from_votes(answers, loose)[0]) == 6


def test_what_is_read_first():
    answers = [Answered("q", "a", 9), Answered("q", "b", 1), Answered("r", "a", 2), Answered("r", "b", 1)]
    answers += [Answered(CRISIS, "Call 988.", 8), Answered(CRISIS, "No.", 1)]
    groups, _ = from_votes(answers, Filters())
    assert [group.prompt for group in for_review(groups, 2)] == [CRISIS, "r"]


@given(
    st.lists(st.tuples(st.sampled_from("qr"), st.sampled_from("abcdef"), st.integers(0, 4)), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_every_pair_is_kept_or_counted(rows, margin):
    answers = [Answered(*row) for row in rows]
    compared = sum(n * (n - 1) // 2 for n in ([r[0] for r in rows].count(q) for q in "qr"))
    try:
        groups, dropped = from_votes(answers, Filters(least_margin=margin))
    except DataError:
        return
    assert len(groups) + sum(dropped.values()) == compared
    assert all(group.scores[0] - group.scores[1] >= margin for group in groups)
    assert len({group.id for group in groups}) == len(groups)
