"""Tests of prompts and negatives."""

from __future__ import annotations

from collections import Counter

import pytest

from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError
from penchant.recipes.recommend.prompts import Wording, draw_negatives, hardest_negatives


def make_question(number: int) -> PreferenceGroup:
    return PreferenceGroup("?", ("a", "b", "c", "d"), preferred=2, id=f"u/{number}")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("H {history} C {candidates} A", "H Up; {candidates} C {0}; Heat; M A"),
        ("C {candidates} H {history}", "C {0}; Heat; M H Up; {candidates}"),
    ],
)
def test_titles_replace_the_templates_fields(template, expected):
    assert Wording(template).prompt(["Up", "{candidates}"], ["{0}", "Heat", "M"]) == expected


@pytest.mark.parametrize("template", ["{history}", "{candidates} {candidates} {history}", ""])
def test_a_template_without_its_fields(template):
    with pytest.raises(ConfigError, match="times; expected once"):
        Wording(template)


@pytest.mark.parametrize("template", ["", "{history} {candidates}", "{history} {history}"])
def test_an_open_template_without_its_field(template):
    with pytest.raises(ConfigError, match="the open_template holds"):
        Wording(open_template=template)


def test_an_open_question():
    assert Wording(open_template="H {history} N").open_prompt(["Up", "{history}"]) == "H Up; {history} N"


def test_negatives_are_drawn_uniformly_from_the_candidates():
    counts = Counter()
    for number in range(600):
        negatives = draw_negatives(make_question(number), 2, [1, 1, 1, 1], 0)
        assert negatives == draw_negatives(make_question(number), 2, [1, 1, 1, 1], 0)
        assert len(set(negatives)) == 2
        counts.update(negatives)
    assert set(counts) == {0, 1, 3}
    assert all(abs(times - 400) < 50 for times in counts.values())


def test_negatives_in_proportion_to_their_weights():
    counts = Counter(draw_negatives(make_question(number), 1, [1, 3, 50, 6], 0)[0] for number in range(2000))
    assert set(counts) == {0, 1, 3}
    for k, weight in ((0, 1), (1, 3), (3, 6)):
        expected = 200 * weight
        assert abs(counts[k] - expected) < 4 * expected**0.5


def test_negatives_without_weight_come_last_in_a_random_order():
    orders = [draw_negatives(make_question(number), 3, [0, 2, 50, 0], 0) for number in range(400)]
    assert {negatives[0] for negatives in orders} == {1}
    counts = Counter(negatives[1] for negatives in orders)
    assert set(counts) == {0, 3}
    assert abs(counts[0] - 200) < 40


def test_hard_negatives_have_the_highest_scores():
    assert hardest_negatives(make_question(0), 2, [1.0, 3.0, 9.0, 3.0]) == (1, 3)


@pytest.mark.parametrize("n", [0, 4])
def test_numbers_of_negatives_out_of_range(n):
    with pytest.raises(ConfigError, match="between 1 and 3 negatives"):
        draw_negatives(make_question(0), n, [1, 1, 1, 1], 0)
    with pytest.raises(ConfigError, match="between 1 and 3 negatives"):
        hardest_negatives(make_question(0), n, [1, 1, 1, 1])
