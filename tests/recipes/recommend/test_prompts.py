"""Questions as text."""

from __future__ import annotations

from collections import Counter

import pytest

from penchant.errors import ConfigError
from penchant.recipes.recommend.histories import Question
from penchant.recipes.recommend.prompts import Wording, as_group, pick_negatives

QUESTION = Question("u", 3, ("a", "b"), "c", 1.0)
TITLES = {"a": "Up", "b": "{candidates}", "c": "Heat", "d": "{0}", "e": "M"}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("H {history} C {candidates} A", "H Up; {candidates} C {0}; Heat; M A"),
        ("C {candidates} H {history}", "C {0}; Heat; M H Up; {candidates}"),
    ],
)
def test_titles_stand_where_the_template_says(template, expected):
    group = as_group(QUESTION, ("d", "c", "e"), TITLES, Wording(template), ("e",))
    assert group.prompt == expected
    assert (group.candidates, group.preferred, group.id) == ((" Heat", " M"), 0, "u/3")


def test_supervised_training_has_the_target_alone():
    group = as_group(QUESTION, ("d", "c"), TITLES, Wording(), ())
    assert (group.candidates, group.preferred) == ((" Heat",), None)


@pytest.mark.parametrize("template", ["{history}", "{candidates} {candidates} {history}", ""])
def test_a_template_without_its_fields(template):
    with pytest.raises(ConfigError, match="times; expected once"):
        Wording(template)


def test_negatives_are_of_those_offered():
    drawn = Counter()
    for number in range(600):
        question = Question("u", number, ("a",), "c", 1.0)
        found = pick_negatives(question, ("a", "b", "c", "d"), 2, None, 0)
        assert found == pick_negatives(question, ("a", "b", "c", "d"), 2, None, 0)
        assert len(set(found)) == 2
        assert "c" not in found
        drawn.update(found)
    assert all(abs(drawn[item] - 400) < 50 for item in "abd")


def test_hard_negatives_have_the_highest_scores():
    scores = {"a": 1.0, "b": 3.0, "c": 9.0, "d": 3.0}
    assert pick_negatives(QUESTION, ("a", "b", "c", "d"), 2, scores, 0) == ("b", "d")


@pytest.mark.parametrize("n", [0, 4])
def test_as_many_negatives_as_there_are(n):
    with pytest.raises(ConfigError, match="between 1 and 3 negatives"):
        pick_negatives(QUESTION, ("a", "b", "c", "d"), n, None, 0)
