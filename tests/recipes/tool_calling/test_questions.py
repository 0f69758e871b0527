"""Tests of right answers, variants, corruptions and the split of questions."""

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
from penchant.recipes.tool_calling.data import families, function_names, split, variants
from penchant.recipes.tool_calling.pairs import CORRUPTIONS, corrupt
from penchant.recipes.tool_calling.variants import (
    Vocabulary,
    make_variant,
    right_answer,
    right_calls,
    with_unrelated_functions,
)

from .conftest import make_function, make_question


def test_right_answers_have_no_fault(questions):
    for question in questions:
        assert question.fault(right_calls(question)) is None
        assert read_calls(right_answer(question)) == right_calls(question)
    assert right_calls(questions[0])[0].arguments.keys() == {"city", "days"}
    accepted_call = {"f": {"a": [{"k": [1], "l": ["", 2]}], "c": [1], "b": ["", 5]}}
    question_with_options = make_question(
        "q", "simple", "?", [make_function("f", a="dict", b="integer")], [accepted_call]
    )
    # Optional arguments, and those that the function does not take, are left out.
    assert right_calls(question_with_options) == [Call("f", {"a": {"k": 1}})]


def test_written_questions_are_read_back(questions, tmp_path):
    write_bfcl(questions, tmp_path)
    read, left_out = read_bfcl(tmp_path)
    assert sorted(read, key=lambda question: question.id) == sorted(questions, key=lambda question: question.id)
    assert not left_out
    write_bfcl(questions[:1], tmp_path)
    assert read_bfcl(tmp_path)[0] == questions[:1]


def test_variants_have_right_answers_and_new_values(questions):
    draw, words = random.Random(0), Vocabulary.from_questions(questions)
    renamed_count = changed_texts = 0
    for question in questions * 5:
        variant = make_variant(question, words, draw)
        assert variant.fault(right_calls(variant)) is None
        assert read_calls(right_answer(variant)) == right_calls(variant)
        assert variant.category == question.category
        renamed_count += variant.functions[0].name != question.functions[0].name
        for call in right_calls(variant):
            for value in call.arguments.values():
                if isinstance(value, int) and not isinstance(value, bool):
                    assert str(value) in variant.text
                if isinstance(value, str):
                    assert value in variant.text
        changed_texts += variant.text != question.text
        if not question.accepted:
            assert variant.functions == question.functions
    assert 0.3 < renamed_count / len(questions * 5) < 0.6
    assert changed_texts > 0.7 * len(questions * 5) * 20 / 24


def test_a_variant_gets_no_reserved_name(questions):
    draw, words = random.Random(0), Vocabulary(["gcd", "lcm"])
    question = make_question("q", "simple", "Of 5?", [make_function("divisor", a="integer")], [{"divisor": {"a": [5]}}])
    names = {make_variant(question, words, draw, {"gcd", "lcm_gcd"}).functions[0].name for _ in range(300)}
    assert {"divisor", "lcm", "gcd_gcd"} < names
    assert not names & {"gcd", "lcm_gcd"}
    # If no other name is free, the function keeps its name.
    single_word = Vocabulary(["gcd"])
    assert {
        make_variant(question, single_word, draw, {"gcd", "gcd_gcd", "gcd_gcd_gcd"}).functions[0].name
        for _ in range(50)
    } == {"divisor"}


def test_a_variant_accepts_what_the_question_does(questions):
    """The variant accepts the same arguments under other names, optional ones too."""
    draw, words = random.Random(0), Vocabulary.from_questions(questions)
    for question in questions * 3:
        variant = make_variant(question, words, draw)
        for old_call, new_call in zip(question.accepted, variant.accepted, strict=True):
            ([(name, old)], [(new_name, new)]) = old_call.items(), new_call.items()
            index = [f.name for f in question.functions].index(name)
            assert variant.functions[index].name == new_name
            assert list(new) == list(variant.functions[index].arguments)
            assert ["" in values for values in new.values()] == ["" in values for values in old.values()]
            if "hot" in old:
                assert list(new.values())[2] == ["", True]
    any_call = make_question("q", "relevance", "?", [make_function("f", a="integer")], [])
    assert make_variant(replace(any_call, accepted=None), words, draw).accepted is None


def test_no_variant_repeats_a_prompt(questions, tmp_path):
    """A question without accepted calls and without numbers gets functions of other questions."""
    plain = make_question("plain", "irrelevance", "Sing to me.", [make_function("add_up", numbers="array")], [])
    config = ToolCallingConfig(
        questions="q", output="o", model="m", mismatched=0.2, paths={"a": ["a"]},
        steps={"a": {"learns": "answers", "objective": {"name": "sft"}}},
    )  # fmt: skip
    originals = [*questions, plain]
    new_questions = variants(config, originals, 8, 0, function_names([]))
    prompts = [as_signatures(question) for question in [*originals, *new_questions]]
    assert len(set(prompts)) == len(prompts)
    assert len({question.id for question in new_questions}) == len(new_questions) > 7 * len(originals)
    plain_variants = [question for question in new_questions if question.id.startswith("plain-")]
    assert {question.text for question in plain_variants} == {"Sing to me."}
    assert all(question.functions[0].name != "add_up" for question in plain_variants)
    variants_with_calls = [question for question in new_questions if not question.id.startswith(("i", "plain"))]
    assert 0.1 < sum(not question.accepted for question in variants_with_calls) / len(variants_with_calls) < 0.3
    for question in new_questions:
        assert question.accepted or question.category == "irrelevance"
        assert question.fault(right_calls(question)) is None


def test_unrelated_functions_share_no_word_with_the_question():
    def offering(name):
        return make_question(name, "simple", "?", [make_function(name, a="integer")], [])

    question = make_question(
        "q", "simple", "How warm is it in Oslo?", [make_function("weatherReport.get", city="string")], []
    )
    likely = [offering(name) for name in ("get_weather", "howWarmIsIt", "weathers.read", "warmer", "oslo_facts")]
    assert with_unrelated_functions(question, question, likely, random.Random(0)) is None
    variant = with_unrelated_functions(question, question, [*likely, *[offering("tip.compute")] * 5], random.Random(0))
    assert variant.functions[0].name == "tip.compute"
    assert variant.accepted == ()


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_every_corruption_is_wrong(questions, seed):
    for question in questions[:6]:
        corruptions = corrupt(question, random.Random(seed))
        assert all(question.fault(calls) is not None for calls in corruptions.values())
        assert set(corruptions) <= set(CORRUPTIONS)
        if question.accepted:
            assert "call where none is due" not in corruptions
        else:
            assert set(corruptions) == {"call where none is due"}


def test_the_fault_of_every_corruption(questions):
    faults = {name: questions[0].fault(calls) for name, calls in corrupt(questions[0], random.Random(0)).items()}
    assert faults == {
        "wrong function": Fault.FUNCTION,
        "missing argument": Fault.MISSING if faults["missing argument"] == Fault.MISSING else Fault.LEFT_OUT,
        "extra argument": Fault.UNKNOWN,
        "other type": Fault.TYPE,
        "wrong value": Fault.VALUE,
        "extra call": Fault.COUNT,
        "missing call": Fault.COUNT,
    }


def test_a_corruption_that_is_right_after_all_is_left_out():
    """All values of the argument are accepted."""
    question = make_question("q", "simple", "?", [make_function("f", a="boolean")], [{"f": {"a": [True, False]}}])
    assert "wrong value" not in corrupt(question, random.Random(0))


def test_parts_share_no_name_and_no_text(questions):
    shared = make_question("x", "simple", "Sing number 3.", [make_function("add_5", a="integer")], [])
    names = families([*questions, shared])
    ids = [*(question.id for question in questions), "x"]
    family_of = dict(zip(ids, names, strict=True))
    # The question shares its text with i3 and its function's name with p5.
    assert family_of["x"] == family_of["i3"] == family_of["p5"]
    assert family_of["s1"] == family_of["p1"] != family_of["s2"]
    train, test = split([*questions, shared], 0.3, seed=0)
    for of_part in (lambda q: {f.name for f in q.functions}, lambda q: {q.text}):
        sides = [set().union(*map(of_part, part)) for part in (train, test)]
        assert sides[0].isdisjoint(sides[1])
    assert len(train) + len(test) == len(questions) + 1
    with pytest.raises(DataError, match="one side empty"):
        split(questions[:1], 0.3, seed=0)


def test_the_split_does_not_depend_on_order(questions):
    shuffled = random.Random(1).sample(questions, len(questions))
    assert {question.id for question in split(shuffled, 0.3, seed=0)[1]} == {
        question.id for question in split(questions, 0.3, seed=0)[1]
    }


@pytest.mark.parametrize("seed", range(5))
def test_added_questions_keep_the_order_of_families(questions, seed):
    """The old questions that are held out now contain, or are contained in, those that were held out without more."""
    added = [
        make_question(f"m{n}", "simple", f"More {n}.", [make_function(f"more_{n}", a="integer")], []) for n in range(30)
    ]
    ids_before = {question.id for question in split(questions, 0.3, seed=seed)[1]}
    ids_after = {question.id for question in split([*added, *questions], 0.3, seed=seed)[1]} & {
        question.id for question in questions
    }
    assert ids_before <= ids_after or ids_after <= ids_before
    assert ids_before & ids_after


def test_the_leaderboards_own_files(shared_data):
    read, _ = read_bfcl(shared_data / "bfcl")
    draw, words = random.Random(0), Vocabulary.from_questions(read)
    for question in read:
        variant = make_variant(question, words, draw)
        assert question.fault(right_calls(question)) is None
        assert variant.fault(right_calls(variant)) is None
        assert as_signatures(variant)
    train, test = split(read, 0.2, seed=0)
    names = [{f.name for q in part for f in q.functions} for part in (train, test)]
    assert names[0].isdisjoint(names[1])
