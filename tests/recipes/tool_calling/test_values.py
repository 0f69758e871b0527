"""Tests that a value is replaced in the question and in its answer, or in neither."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.evaluation.tool_calls.calls import Call
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.recipes.tool_calling.variants import SwappableValues, Vocabulary, right_calls

from .conftest import make_function, make_question

WORDS = Vocabulary(["knee", "sleep", "pain", "heart", "food", "worry", "mother", "night", "doctor", "work"])
TRIP = make_function("trip", start="string", end="string", days="integer", rate="float", stops="array", options="dict")
PIECES = [
    "Paris", "New York", "York", "paris", "Rome", "Rome, Italy", "5", "5%", "12", "x^3", "3", "3x", "five", "0.5",
    "12.5", "1,500", "500", "2024-05-12", "-3", "10:12", "Sleep",
]  # fmt: skip
STRINGS, INTEGERS, FLOATS = ["Paris", "New York", "York", "Rome", "Rome, Italy", "5"], [5, 12, 3, 500, -3], [0.5, 5.0]


def leaf_values(value):
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaf_values(part)]
    return [leaf for part in value for leaf in leaf_values(part)] if isinstance(value, list) else [value]


def argument_values(calls):
    return [leaf for call in calls for leaf in leaf_values(dict(call.arguments))]


def spelled(value):
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def text_holds(text, value):
    return re.search(rf"(?<![\w.]){re.escape(spelled(value))}(?!\w|\.\d)", text) is not None


def swap_values(question, seed=0):
    text, accepted = SwappableValues.from_question(question).swap(question, WORDS, random.Random(seed))
    return make_question(question.id, question.category, text, question.functions, accepted)


def count_swaps(question, variant):
    """The number of replaced values in the right answer, all of which are checked."""
    old_values, new_values = argument_values(right_calls(question)), argument_values(right_calls(variant))
    swapped = 0
    for old, new in zip(old_values, new_values, strict=True):
        assert type(new) is type(old)
        if isinstance(old, bool) or new == old:
            # A value that was not replaced is in the text if it was there before.
            assert text_holds(variant.text, old) == text_holds(question.text, old)
            continue
        swapped += 1
        assert not text_holds(variant.text, old)
        assert text_holds(variant.text, new)
        # Every argument with the old value has the new one.
        assert spelled(old) not in {spelled(value) for value in new_values}
        assert {spelled(n) for o, n in zip(old_values, new_values, strict=True) if spelled(o) == spelled(old)} == {
            spelled(new)
        }
    assert variant.fault(right_calls(variant)) is None
    return swapped


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_replacements_in_random_questions(data):
    def draw_some(choices):
        return data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=2, unique_by=repr))

    accepted_calls = []
    for _ in range(data.draw(st.integers(1, 3))):
        options = {"city": draw_some(STRINGS), "n": [*draw_some(INTEGERS), ""]}
        arguments = {
            "start": draw_some(STRINGS), "end": draw_some(STRINGS), "days": draw_some(INTEGERS),
            "rate": ["", *draw_some(FLOATS)],
            "stops": [draw_some(STRINGS)], "options": [options],
        }  # fmt: skip
        keys = data.draw(st.sets(st.sampled_from(list(arguments)))) | {"start"}
        accepted_calls.append({"trip": {key: values for key, values in arguments.items() if key in keys}})
    text = " and ".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=8)))
    question = make_question("q", "simple", text, [TRIP], accepted_calls)
    count_swaps(question, swap_values(question, data.draw(st.integers(0, 100))))


def test_the_leaderboards_own_values(shared_data):
    """Of 2,111 values in the texts, 1,445 are replaced."""
    questions = [question for question in read_bfcl(shared_data / "bfcl")[0] if question.accepted]
    swapped = sum(count_swaps(question, swap_values(question, seed)) for question in questions for seed in range(3)) / 3
    assert swapped > 1_400


@pytest.mark.parametrize(
    ("text", "legs", "replaced_words"),
    [
        # A word twice in the text and twice in the answer is replaced.
        (
            "From Paris to Rome, and from Rome to Oslo.",
            [("Paris", "Rome"), ("Rome", "Oslo")],
            {"Paris", "Rome", "Oslo"},
        ),
        # A word that is more often in the text, or more often in the answer, is not replaced.
        ("From Paris to Rome; in Paris it rains.", [("Paris", "Rome")], {"Rome"}),
        ("From Paris to Rome and back.", [("Paris", "Rome"), ("Rome", "Paris")], set()),
        # A word that is a part of another value of the answer is not replaced.
        ("From York to New York.", [("York", "New York")], set()),
        ("From York to there.", [("York", "York, England")], set()),
        # A word whose case differs from the answer's is not replaced.
        ("From paris to Rome.", [("Paris", "Rome")], {"Rome"}),
    ],
)
def test_words(text, legs, replaced_words):
    question = make_question("q", "parallel", text, [TRIP], [{"trip": {"start": [a], "end": [b]}} for a, b in legs])
    variant = swap_values(question)
    count_swaps(question, variant)
    old_values, new_values = argument_values(right_calls(question)), argument_values(right_calls(variant))
    assert {old for old, new in zip(old_values, new_values, strict=True) if old != new} == replaced_words


@pytest.mark.parametrize(
    ("text", "number", "is_replaced"),
    [
        ("Add 5 to 15 and 5.5.", 5, True),
        ("At 5% for 5 years.", 5, False),
        ("At 5% for five years.", 5, False),
        ("At x = 3 for y = x^3.", 3, False),
        ("Of 3x + 1, where 3 is the slope.", 3, False),
        ("It costs 1,500 coins.", 500, False),
        ("It costs 1,500 coins.", 1, False),
        ("On 2024-05-12.", 12, False),
        ("At 10:12.", 12, False),
        ("From -12 degrees.", 12, False),
        ("From -12 degrees.", -12, True),
        ("By [3,4,5].", 4, True),
    ],
)
def test_numbers(text, number, is_replaced):
    question = make_question("q", "simple", text, [make_function("f", days="integer")], [{"f": {"days": [number]}}])
    assert count_swaps(question, swap_values(question)) == is_replaced


def test_a_number_of_two_arguments_is_not_replaced():
    """In "5 % for 5 years" with two calls for 5 years, one 5 means something else."""
    invest = make_function("invest", years="integer", rate="float")
    accepted_calls = [{"invest": {"years": [5], "rate": [rate]}} for rate in (0.05, 0.1)]
    question = make_question("q", "parallel", "At 5% for 5 years, and at 10%.", [invest], accepted_calls)
    assert swap_values(question).text == question.text


def test_a_value_of_an_enum_is_not_replaced():
    function = make_function("f", unit="string", city="string")
    function.schema["parameters"]["properties"]["unit"]["enum"] = ["metric", "imperial"]
    question = make_question(
        "q", "simple", "In metric units in Rome.", [function], [{"f": {"unit": ["metric"], "city": ["Rome"]}}]
    )
    [call] = right_calls(swap_values(question))
    assert call.arguments["unit"] == "metric"
    assert call.arguments["city"] != "Rome"


def test_accepted_values_are_replaced_together():
    accepted_values = {
        "start": ["Rome", "ROME", "Rome, Italy"], "end": ["Paris", "Paris, France"], "days": [5, 5.0, "5"],
        "rate": ["", 0.5], "stops": [["Oslo", "Bonn"], ["Bonn", "Oslo"], ["Oslo"]],
        "options": [{"n": [7, ""], "city": ["Kiel", "kiel"]}],
    }  # fmt: skip
    text = "From Rome for 5 days to the town of love by Oslo and Bonn, 7, in Kiel."
    question = make_question("q", "simple", text, [TRIP], [{"trip": accepted_values}])
    variant = swap_values(question)
    [new] = (accepted["trip"] for accepted in variant.accepted)
    match = re.fullmatch(
        r"From (\w+) for (\d) days to the town of love by (\w+) and (\w+), (\d), in (\w+)\.", variant.text
    )
    start, days, oslo, bonn, n, kiel = match.groups()
    assert not {start, oslo, bonn, kiel} & {"Rome", "Oslo", "Bonn", "Kiel"}
    # Alternatives without the replaced spelling are dropped; arguments without a replacement keep all alternatives.
    assert new["start"] == [start]
    assert new["end"] == accepted_values["end"]
    assert list(map(repr, new["days"])) == list(map(repr, [int(days), float(days), days]))
    assert new["rate"] == ["", 0.5]
    assert new["stops"] == [[oslo, bonn], [bonn, oslo]]
    # The right answer leaves out n, which stays.
    assert new["options"] == [{"n": [7, ""], "city": [kiel]}]
    assert n == "7"
    with_more = {**right_calls(variant)[0].arguments, "rate": 0.5, "end": "Paris, France"}
    assert variant.fault([Call("trip", with_more)]) is None


def test_all_numbers_are_replaced_without_accepted_calls():
    question = make_question("q", "irrelevance", "Is 12 more than 7, and 12 more than 3.5?", [TRIP], [])
    variant = swap_values(question)
    a, b, a_again, c = re.findall(r"\d+(?:\.\d)?", variant.text)
    assert a == a_again
    assert len({a, b, c, "12", "7", "3.5"}) == 6
    assert variant.accepted == ()
