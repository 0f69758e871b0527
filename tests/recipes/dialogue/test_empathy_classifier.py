"""The classifier learns what its labels show, and says how well on texts it has not seen."""

from __future__ import annotations

import random

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.errors import DataError
from penchant.recipes.dialogue.measures import EmpathyClassifier

COMMON = ["the", "day", "doctor", "pain", "sleep", "food", "week"]


def labelled(n, marker_words, seed=0):
    draw = random.Random(seed)
    rows = []
    for k in range(n):
        words = draw.choices(COMMON, k=8) + ([draw.choice(marker_words)] if k % 2 else [draw.choice(["dose", "chart"])])
        rows.append(PreferenceGroup("", (" ".join(words),), labels=(bool(k % 2),), id=str(k)))
    return rows


def test_what_the_labels_show():
    classifier = EmpathyClassifier(labelled(60, ["sorry", "feel"]))
    assert classifier.auc > 0.95
    warm, cold = classifier(["sorry the day", "dose the day"])
    assert warm > 0.5 > cold
    assert classifier([]) == []


def test_labels_by_chance_are_told_by_the_auc():
    rows = labelled(200, ["dose", "chart"], seed=3)
    assert 0.3 < EmpathyClassifier(rows).auc < 0.7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([PreferenceGroup("", ("a",))], "a text has no label"),
        (labelled(8, ["sorry"]), "4 texts of one of the two labels; 5 are needed"),
    ],
)
def test_too_little(rows, message):
    with pytest.raises(DataError, match=message):
        EmpathyClassifier(rows)
