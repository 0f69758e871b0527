"""Tests of the leaderboard's files and the accepted calls of their questions."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Fault
from penchant.evaluation.tool_calls.questions import evenly_spaced, read_bfcl, select_questions


def test_files(bfcl):
    questions, left_out = read_bfcl(bfcl)
    assert [(question.id, question.category, question.language) for question in questions] == [
        ("i0", "irrelevance", "python"),
        ("r0", "live_relevance", "python"),
        ("p0", "parallel_multiple", "python"),
        ("j0", "simple_java", "java"),
        ("s0", "simple_python", "python"),
        ("s1", "simple_python", "python"),
    ]
    assert list(left_out) == ["multi_turn_base"]
    assert [question.id for question in select_questions(questions, ["simple_python", "irrelevance"], 1)] == [
        "s0",
        "i0",
    ]
    assert select_questions(questions, [], None) == questions
    assert [question.id for question in select_questions(questions, ["irrelevance", "irrelevance"], None)] == ["i0"]
    with pytest.raises(DataError, match="there is no category 'x'"):
        select_questions(questions, ["x"], None)


def test_faults_of_calls(bfcl):
    irrelevant, relevant, both, _, simple, _ = read_bfcl(bfcl)[0]
    call = Call("m.add", {"a": 1})
    assert [irrelevant.fault(calls) for calls in ([], None, [call])] == [None, None, Fault.UNCALLED_FOR]
    assert [relevant.fault(calls) for calls in ([], None, [call])] == [Fault.NO_CALL, Fault.NO_CALL, None]
    assert [simple.fault(calls) for calls in ([], None, [call])] == [Fault.COUNT, Fault.NO_CALL, None]
    assert both.fault([Call("m.sub", {"a": {"k": 1}}), call]) is None


@pytest.mark.parametrize(
    ("category", "row", "answer", "message"),
    [
        ("simple_python", {"id": "a"}, None, "the row is not a question: KeyError"),
        ("simple_python", {"id": "a", "question": [[], []], "function": []}, None, "2 turns; expected one"),
        ("simple_python", "{", None, "line 1: not valid JSON at column 2"),
        ("simple_python", {}, {"id": "s0", "ground_truth": []}, "there is no answer to s0"),
        ("simple_python", {}, {"id": "s0", "ground_truth": [{"f": {}}]}, "the answer to s0 calls 'f'"),
        ("simple_python", {}, {"id": "s0", "ground_truth": [{"m.add": {"a": 1}}]}, "s0 accepts 1 as 'a' of m.add"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": " "}]], "function": []}, None,
         "question a has no text"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": None}]], "function": []}, None,
         "question a has no text"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": "?"}]],
                           "function": [{"name": "f", "parameters": {"properties": {}, "required": "city"}}]}, None,
         "row 1: not the schema of a function: f requires 'city', which is not a list"),
    ],
)  # fmt: skip
def test_bad_rows(bfcl, category, row, answer, message):
    file = bfcl / f"BFCL_v4_{category}.json"
    if row:
        file.write_text(row if isinstance(row, str) else json.dumps(row))
    if answer:
        (bfcl / "possible_answer" / file.name).write_text(json.dumps(answer))
    with pytest.raises(DataError) as error:
        read_bfcl(bfcl)
    assert message in str(error.value)
    assert (f"possible_answer/{file.name}" if answer else file.name) in str(error.value)


def test_bare_entries_of_accepted_dicts_are_lists_of_one(tmp_path):
    """Entries are wrapped where the checker reads them; values that are only compared stay."""
    properties = {
        "d": {"type": "dict"},
        "l": {"type": "array", "items": {"type": "dict"}},
        "p": {"type": "array", "items": {"type": "string"}},
        "s": {"type": "any"},
    }
    schema = {"name": "f", "parameters": {"type": "dict", "properties": properties}}
    question = {"id": "q", "question": [[{"role": "user", "content": "?"}]], "function": [schema]}
    bare = {"city": "Rome", "lat": -74.006, "in": {"a": 1}, "far": [5, ""]}
    accepted = {"d": ["", bare], "l": [[bare, bare], "name"], "p": [[bare]], "s": [bare], "unknown": [bare]}
    (tmp_path / "possible_answer").mkdir()
    file = "BFCL_v4_simple_python.json"
    (tmp_path / file).write_text(json.dumps(question))
    (tmp_path / "possible_answer" / file).write_text(json.dumps({"id": "q", "ground_truth": [{"f": accepted}]}))
    [[read], _] = read_bfcl(tmp_path)
    entries = {"city": ["Rome"], "lat": [-74.006], "in": [{"a": 1}], "far": [5, ""]}
    assert read.accepted == (
        {"f": {"d": ["", entries], "l": [[entries, entries], "name"], "p": [[bare]], "s": [bare], "unknown": [bare]}},
    )
    right = {"city": "rome", "lat": -74.006, "in": {"a": 1}}
    arguments = {"l": [right, right], "p": [bare], "s": bare}
    read = replace(read, accepted=({"f": read.accepted[0]["f"] | {"unknown": [""]}},))
    assert read.fault([Call("f", {"d": right} | arguments)]) is None
    # A text is not read as a list of its letters.
    assert read.fault([Call("f", {"d": right | {"city": "R"}} | arguments)]) == Fault.VALUE
    assert read.fault([Call("f", {"d": {"city": "Rome"}} | arguments)]) == Fault.VALUE


def test_evenly_spaced(bfcl):
    questions = read_bfcl(bfcl)[0]
    assert [question.id for question in evenly_spaced(questions, 3)] == ["i0", "p0", "s0"]
    assert [question.id for question in evenly_spaced(questions, 4)] == ["i0", "r0", "j0", "s0"]
    assert evenly_spaced(questions, 6) == evenly_spaced(questions, 60) == questions
    assert evenly_spaced([], 3) == []


def test_nothing_to_measure(tmp_path, bfcl):
    with pytest.raises(DataError, match="the folder has no file BFCL_v"):
        read_bfcl(tmp_path)
    for file in bfcl.glob("*.json"):
        if "multi_turn" not in file.name:
            file.unlink()
    with pytest.raises(DataError, match="no question is left"):
        read_bfcl(bfcl)


def test_the_leaderboards_own_files(shared_data):
    questions, left_out = read_bfcl(shared_data / "bfcl")
    assert len(questions) == 744
    assert set(left_out) == {"LICENSE", "NOTICE"}
    # The first accepted values of every question are right; one names an argument that its function does not take.
    for question in questions:
        arguments = {function.name: function.arguments for function in question.functions}
        calls = [
            Call(
                name,
                {
                    key: first_entries(value)
                    for key, values in accepted_call[name].items()
                    if key in arguments[name]
                    for value in first_value(values)
                },
            )
            for accepted_call in question.accepted
            for name in accepted_call
        ]
        assert question.fault(calls) is None, question.id


def first_value(values):
    """The first value that is not "", in a list; empty if there is none."""
    return [value for value in values if value != ""][:1]


def first_entries(value):
    """The value with the first of every dict entry's accepted values."""
    if isinstance(value, dict):
        return {k: item[0] if isinstance(item, list) and item else item for k, item in value.items() if item != [""]}
    return [first_entries(item) for item in value] if isinstance(value, list) else value
