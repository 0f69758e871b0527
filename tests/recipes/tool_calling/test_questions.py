"""Right answers, variants, corruptions, and parts that share nothing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Fault
from penchant.evaluation.tool_calls.questions import read_bfcl, write_bfcl
from penchant.evaluation.tool_calls.reading import read_calls
from penchant.evaluation.tool_calls.styles import as_signatures
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.corruptions import CORRUPTIONS, corrupt
from penchant.recipes.tool_calling.data import names_of, variants
from penchant.recipes.tool_calling.right import right_answer, right_calls
from penchant.recipes.tool_calling.splitting import families, split
from penchant.recipes.tool_calling.variants import misplaced, variant
from penchant.recipes.tool_calling.vocabulary import Vocabulary

from .conftest import function, question


def test_what_is_right_is_right(questions):
    for each in questions:
        assert each.fault(right_calls(each)) is None
        assert read_calls(right_answer(each)) == right_calls(each)
    assert right_calls(questions[0])[0].arguments.keys() == {"city", "days"}
    due = {"f": {"a": [{"k": [1], "l": ["", 2]}], "c": [1], "b": ["", 5]}}
    asked = question("q", "simple", "?", [function("f", a="dict", b="integer")], [due])
    # What may be left out is, and what the function does not take.
    assert right_calls(asked) == [Call("f", {"a": {"k": 1}})]


def test_what_is_written_is_read(questions, tmp_path):
    write_bfcl(questions, tmp_path)
    read, left_out = read_bfcl(tmp_path)
    assert sorted(read, key=lambda each: each.id) == sorted(questions, key=lambda each: each.id)
    assert not left_out
    write_bfcl(questions[:1], tmp_path)
    assert read_bfcl(tmp_path)[0] == questions[:1]


def test_variants(questions):
    draw, words = random.Random(0), Vocabulary.of(questions)
    renamed = other = 0
    for each in questions * 5:
        made = variant(each, words, draw)
        assert made.fault(right_calls(made)) is None
        assert read_calls(right_answer(made)) == right_calls(made)
        assert made.category == each.category
        renamed += made.functions[0].name != each.functions[0].name
        for call in right_calls(made):
            for value in call.arguments.values():
                if isinstance(value, int) and not isinstance(value, bool):
                    assert str(value) in made.text
                if isinstance(value, str):
                    assert value in made.text
        other += made.text != each.text
        if not each.accepted:
            assert made.functions == each.functions
    assert 0.3 < renamed / len(questions * 5) < 0.6
    assert other > 0.7 * len(questions * 5) * 20 / 24


def test_a_variant_takes_no_name_that_is_taken(questions):
    draw, words = random.Random(0), Vocabulary(["gcd", "lcm"])
    asked = question("q", "simple", "Of 5?", [function("divisor", a="integer")], [{"divisor": {"a": [5]}}])
    names = {variant(asked, words, draw, {"gcd", "lcm_gcd"}).functions[0].name for _ in range(300)}
    assert {"divisor", "lcm", "gcd_gcd"} < names
    assert not names & {"gcd", "lcm_gcd"}
    # Where no other name is free the function keeps its own.
    alone = Vocabulary(["gcd"])
    assert {variant(asked, alone, draw, {"gcd", "gcd_gcd", "gcd_gcd_gcd"}).functions[0].name for _ in range(50)} == {
        "divisor"
    }


def test_a_variant_accepts_what_the_question_does(questions):
    """Under other names, optional arguments too."""
    draw, words = random.Random(0), Vocabulary.of(questions)
    for asked in questions * 3:
        made = variant(asked, words, draw)
        for before, after in zip(asked.accepted, made.accepted, strict=True):
            ([(name, old)], [(renamed, new)]) = before.items(), after.items()
            place = [f.name for f in asked.functions].index(name)
            assert made.functions[place].name == renamed
            assert list(new) == list(made.functions[place].arguments)
            assert ["" in values for values in new.values()] == ["" in values for values in old.values()]
            if "hot" in old:
                assert list(new.values())[2] == ["", True]
    any_call = question("q", "relevance", "?", [function("f", a="integer")], [])
    assert variant(replace(any_call, accepted=None), words, draw).accepted is None


def test_no_variant_is_a_repeat(questions, tmp_path):
    """Of a question to which no call is due, where it says no number, under functions that do not serve."""
    plain = question("plain", "irrelevance", "Sing to me.", [function("add_up", numbers="array")], [])
    config = ToolCallingConfig(
        questions="q", output="o", model="m", mismatched=0.2, paths={"a": ["a"]},
        steps={"a": {"learns": "answers", "objective": {"name": "sft"}}},
    )  # fmt: skip
    asked = [*questions, plain]
    made = variants(config, asked, 8, 0, names_of([]))
    prompts = [as_signatures(each) for each in [*asked, *made]]
    assert len(set(prompts)) == len(prompts)
    assert len({each.id for each in made}) == len(made) > 7 * len(asked)
    own = [each for each in made if each.id.startswith("plain-")]
    assert {each.text for each in own} == {"Sing to me."}
    assert all(each.functions[0].name != "add_up" for each in own)
    due = [each for each in made if not each.id.startswith(("i", "plain"))]
    assert 0.1 < sum(not each.accepted for each in due) / len(due) < 0.3
    for each in made:
        assert each.accepted or each.category == "irrelevance"
        assert each.fault(right_calls(each)) is None


def test_no_function_is_misplaced_that_may_serve():
    def offering(name):
        return question(name, "simple", "?", [function(name, a="integer")], [])

    asked = question("q", "simple", "How warm is it in Oslo?", [function("weatherReport.get", city="string")], [])
    likely = [offering(name) for name in ("get_weather", "howWarmIsIt", "weathers.read", "warmer", "oslo_facts")]
    assert misplaced(asked, asked, likely, random.Random(0)) is None
    made = misplaced(asked, asked, [*likely, *[offering("tip.compute")] * 5], random.Random(0))
    assert made.functions[0].name == "tip.compute"
    assert made.accepted == ()


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_every_corruption_is_wrong(questions, seed):
    for each in questions[:6]:
        found = corrupt(each, random.Random(seed))
        assert all(each.fault(calls) is not None for calls in found.values())
        assert set(found) <= set(CORRUPTIONS)
        if each.accepted:
            assert "call where none is due" not in found
        else:
            assert set(found) == {"call where none is due"}


def test_each_kind_by_its_fault(questions):
    found = {name: questions[0].fault(calls) for name, calls in corrupt(questions[0], random.Random(0)).items()}
    assert found == {
        "wrong function": Fault.FUNCTION,
        "missing argument": Fault.MISSING if found["missing argument"] == Fault.MISSING else Fault.LEFT_OUT,
        "extra argument": Fault.UNKNOWN,
        "other type": Fault.TYPE,
        "wrong value": Fault.VALUE,
        "extra call": Fault.COUNT,
        "missing call": Fault.COUNT,
    }


def test_a_corruption_that_is_right_after_all_is_left_out():
    """Any of these values would do."""
    asked = question("q", "simple", "?", [function("f", a="boolean")], [{"f": {"a": [True, False]}}])
    assert "wrong value" not in corrupt(asked, random.Random(0))


def test_parts_share_no_name_and_no_text(questions):
    shared = question("x", "simple", "Sing number 3.", [function("add_5", a="integer")], [])
    found = families([*questions, shared])
    ids = [*(each.id for each in questions), "x"]
    of = dict(zip(ids, found, strict=True))
    # By the text with i3, and by the name with p5.
    assert of["x"] == of["i3"] == of["p5"]
    assert of["s1"] == of["p1"] != of["s2"]
    train, test = split([*questions, shared], 0.3, seed=0)
    for of_part in (lambda q: {f.name for f in q.functions}, lambda q: {q.text}):
        sides = [set().union(*map(of_part, part)) for part in (train, test)]
        assert sides[0].isdisjoint(sides[1])
    assert len(train) + len(test) == len(questions) + 1
    with pytest.raises(DataError, match="one side empty"):
        split(questions[:1], 0.3, seed=0)


def test_parts_do_not_depend_on_order(questions):
    shuffled = random.Random(1).sample(questions, len(questions))
    assert {each.id for each in split(shuffled, 0.3, seed=0)[1]} == {
        each.id for each in split(questions, 0.3, seed=0)[1]
    }


@pytest.mark.parametrize("seed", range(5))
def test_questions_that_are_added_part_no_others(questions, seed):
    """A family's place among the others stays: of the old ones held out then, all or none besides are held out now."""
    more = [question(f"m{n}", "simple", f"More {n}.", [function(f"more_{n}", a="integer")], []) for n in range(30)]
    before = {each.id for each in split(questions, 0.3, seed=seed)[1]}
    after = {each.id for each in split([*more, *questions], 0.3, seed=seed)[1]} & {each.id for each in questions}
    assert before <= after or after <= before
    assert before & after


def test_the_leaderboards_own_files(shared_data):
    read, _ = read_bfcl(shared_data / "bfcl")
    draw, words = random.Random(0), Vocabulary.of(read)
    for each in read:
        made = variant(each, words, draw)
        assert each.fault(right_calls(each)) is None
        assert made.fault(right_calls(made)) is None
        assert as_signatures(made)
    train, test = split(read, 0.2, seed=0)
    names = [{f.name for q in part for f in q.functions} for part in (train, test)]
    assert names[0].isdisjoint(names[1])
