"""Pairs from ratings and styles, and the filters that drop pairs."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from penchant.data.groups import PreferenceGroup
from penchant.recipes.dialogue.construction import Filters, for_review, from_ratings, from_styles
from penchant.recipes.dialogue.rewriting import AnswerRecord, StyledAnswers

CRISIS = "I want to die."


def rated(answers, filters=Filters()):  # noqa: B008 - frozen
    dropped = Counter()
    pairs = from_ratings(answers, filters, dropped)
    return [(pair.better.answer, pair.worse.answer) for pair in pairs], {
        reason: n for reason, n in dropped.items() if n
    }


def test_pairs_with_a_rating_difference():
    answers = [
        AnswerRecord("q", "a", 3),
        AnswerRecord("q", "b", 1),
        AnswerRecord("q", "c", 1),
        AnswerRecord("other", "d", 9),
    ]
    assert rated(answers) == ([("a", "b"), ("a", "c")], {"ratings too close": 1})
    assert rated(answers, Filters(least_margin=5)) == ([], {"ratings too close": 3})
    [pair, _] = from_ratings(answers, Filters(), Counter())
    assert pair.margin == 2


def test_pairs_per_question_are_those_with_the_widest_margins():
    answers = [AnswerRecord("q", str(n), n) for n in range(4)]
    pairs, dropped = rated(answers, Filters(per_question=2))
    assert pairs == [("3", "0"), ("2", "0")]
    assert dropped == {"more pairs than one question may have": 4}


def test_filters_of_safety_facts_and_length():
    answers = [
        AnswerRecord(CRISIS, "Cheer up.", 5),
        AnswerRecord(CRISIS, "Please call 988.", 3),
        AnswerRecord(CRISIS, "No.", 0),
        AnswerRecord("How much?", "Take 50 mg.", 5, source="5 mg a day"),
        AnswerRecord("How much?", "Take 5 mg.", 3, source="5 mg a day"),
        AnswerRecord("How much?", "Ask.", 0, source="5 mg a day"),
        AnswerRecord("Same?", "One  text", 2),
        AnswerRecord("Same?", "One text ", 1),
    ]
    pairs, dropped = rated(answers)
    assert pairs == [("Please call 988.", "No."), ("Take 5 mg.", "Ask.")]
    assert dropped == {
        "a crisis, and the better answer names no help": 2,
        "the better answer goes beyond its source": 2,
        "the two answers are one": 1,
    }
    assert len(rated(answers, Filters(crisis_needs_referral=False, most_unsupported=1))[0]) == 6
    assert rated(answers, Filters(most_words=2))[1]["an answer of more than 2 words"] == 5


def test_rewritings_with_new_facts_are_dropped():
    answers = [AnswerRecord("Dose?", "Take 5 mg."), AnswerRecord("Risk?", "None."), AnswerRecord("Why?", "So.")]

    def rewrite(records):
        assert list(records) == answers
        return [StyledAnswers("Perhaps 5 mg.", "Take 5 mg!"), StyledAnswers("None, says Mary.", "None!"), None]

    dropped = Counter()
    pairs = from_styles(answers, rewrite, Filters(), dropped)
    assert [(pair.better.answer, pair.worse.answer) for pair in pairs] == [("Perhaps 5 mg.", "Take 5 mg!")]
    assert dropped == {"it could not be rewritten": 1, "the better answer goes beyond its source": 1}


def test_review_queue_order():
    groups = [
        PreferenceGroup("q", ("a", "b"), scores=(9, 1), id="0"),
        PreferenceGroup("r", ("a", "b"), scores=(2, 1), id="1"),
        PreferenceGroup(CRISIS, ("Call 988.", "No."), scores=(8, 1), id="2"),
    ]
    assert [group.prompt for group in for_review(groups, 2)] == [CRISIS, "r"]


@given(
    st.lists(st.tuples(st.sampled_from("qr"), st.sampled_from("abcdef"), st.integers(0, 4)), min_size=1, max_size=12),
    st.integers(1, 3),
)
def test_every_pair_is_returned_or_counted(rows, margin):
    dropped = Counter()
    pairs = from_ratings([AnswerRecord(*row) for row in rows], Filters(least_margin=margin), dropped)
    compared = sum(n * (n - 1) // 2 for n in ([r[0] for r in rows].count(q) for q in "qr"))
    assert len(pairs) + sum(dropped.values()) == compared
    assert all(pair.margin >= margin for pair in pairs)
