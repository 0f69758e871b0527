"""Answers against reference texts, by hand."""

from __future__ import annotations

import pytest

from penchant.evaluation.text_similarity import exact_match, rouge_l, token_f1


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "f1", "rouge"),
    [
        ("The cat.", "cat", 1.0, 1.0, 2 / 3),
        ("a lender's fee", "Lenders fee", 1.0, 1.0, 2 * 1 / 6),
        ("one two three four", "two one four", 0.0, 6 / 7, 2 * 2 / 7),
        ("one one", "one", 0.0, 2 / 3, 2 / 3),
        ("", "one", 0.0, 0.0, 0.0),
        ("the", "a", 1.0, 1.0, 0.0),
    ],
)
def test_by_hand(answer, reference, exact, f1, rouge):
    assert exact_match(answer, reference) == exact
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert token_f1(reference, answer) == pytest.approx(f1)
    assert rouge_l(answer, reference) == pytest.approx(rouge)
