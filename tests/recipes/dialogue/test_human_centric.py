"""How an answer reads, by hand."""

from __future__ import annotations

import pytest

from penchant.recipes.dialogue.human_centric import (
    empathy,
    facts,
    facts_recalled,
    grade_level,
    is_crisis,
    politeness,
    refers,
    syllables,
    unsupported,
)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("cat", 1), ("happy", 2), ("the", 1), ("make", 1), ("table", 2), ("walked", 1), ("wanted", 2), ("empathy", 3),
        ("understand", 3), ("boxes", 2), ("times", 1), ("I", 1), ("hmm", 1), ("medication", 4), ("don't", 1),
    ],
)  # fmt: skip
def test_syllables(word, expected):
    assert syllables(word) == expected


def test_grade_level():
    # 6 and 3 words in two sentences; 6 + 4 syllables.
    text = "The cat sat on the mat. It was happy!"
    assert grade_level(text) == pytest.approx(0.39 * 9 / 2 + 11.8 * 10 / 9 - 15.59)
    assert grade_level("") == grade_level("12 ...") == 0.0
    hard = "Pharmacological interventions necessitate comprehensive evaluation of contraindications."
    assert grade_level(hard) > 12 > grade_level(text)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Take two pills.", (0, 0, 0)),
        ("I’m sorry you went through this.", (1, 0, 0)),
        ("I understand. It sounds like a lot.", (0, 1, 0)),
        ("Have you talked to anyone", (0, 0, 1)),
        ("What do your friends say?", (0, 0, 1)),
        ("What is asthma? It is a disease. You cough.", (0, 0, 0)),
        ("I'm sorry. That makes sense. How long have you felt so?", (1, 1, 1)),
        ("The misunderstandable ringlet", (0, 0, 0)),
    ],
)
def test_empathy(answer, expected):
    scores = empathy(answer)
    assert (scores["reaction"], scores["interpretation"], scores["exploration"]) == expected
    assert scores["empathy"] == sum(expected)


def test_politeness():
    assert politeness("Please sit down, and thank you.") == pytest.approx(100 * 2 / 6)
    assert politeness("Sit down.") == politeness("") == 0.0


@pytest.mark.parametrize(
    ("answer", "source", "expected"),
    [
        ("Take 5 mg of Aspirin.", "5 mg of aspirin", ()),
        ("Take 50 mg of Aspirin.", "5 mg of ibuprofen", ("50", "Aspirin")),
        ("Paris is nice. It was 3.5 in Rome, and 3.5 again.", "nice", ("3.5", "Rome")),
        ("So I said: Go.", "", ()),
    ],
)
def test_what_the_source_does_not_say(answer, source, expected):
    assert unsupported(answer, source) == expected


def test_the_share_of_facts_that_an_answer_recalls():
    reference = "Take 20 mg at 8.30, says Dr. Weiss. Ask in Bern."
    assert facts(reference) == ("20", "8.30", "Dr", "Bern")
    assert facts_recalled("In bern, 20 mg.", reference) == 0.5
    assert facts_recalled("Rest.", reference) == 0
    assert facts_recalled("Take 20.", "Rest a while.") is None


def test_crisis_and_referral():
    assert is_crisis("Sometimes I want to die.")
    assert is_crisis("I've never tried suicide")
    assert not is_crisis("My dog died.")
    assert refers("Call 988, or a hotline near you.")
    assert not refers("Cheer up. It is 9880.")


def test_counsellors_answers(shared_data):
    """Real answers of counsellors: most are readable, many show empathy; these are ranges, not truths."""
    from penchant.data.reading import read_groups

    groups = read_groups(shared_data / "counsel_chat" / "pairs.jsonl").groups
    answers = {group.candidates[0] for group in groups}
    grades = sorted(grade_level(answer) for answer in answers)
    assert 6 < grades[len(grades) // 2] < 12
    assert 0.3 < sum(empathy(answer)["empathy"] > 0 for answer in answers) / len(answers) < 1
