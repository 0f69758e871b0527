"""The leaderboard's files, and what is due of each question."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Fault
from penchant.evaluation.tool_calls.questions import choose, read_bfcl, spread


def test_files(bfcl):
    questions, left_out = read_bfcl(bfcl)
    assert [(each.id, each.category, each.language) for each in questions] == [
        ("i0", "irrelevance", "python"),
        ("r0", "live_relevance", "python"),
        ("p0", "parallel_multiple", "python"),
        ("j0", "simple_java", "java"),
        ("s0", "simple_python", "python"),
        ("s1", "simple_python", "python"),
    ]
    assert list(left_out) == ["multi_turn_base"]
    assert [each.id for each in choose(questions, ["simple_python", "irrelevance"], 1)] == ["s0", "i0"]
    assert choose(questions, [], None) == questions
    assert [each.id for each in choose(questions, ["irrelevance", "irrelevance"], None)] == ["i0"]
    with pytest.raises(DataError, match="there is no category 'x'"):
        choose(questions, ["x"], None)


def test_what_is_due(bfcl):
    irrelevant, relevant, both, _, simple, _ = read_bfcl(bfcl)[0]
    call = Call("m.add", {"a": 1})
    assert [irrelevant.fault(calls) for calls in ([], None, [call])] == [None, None, Fault.UNCALLED_FOR]
    assert [relevant.fault(calls) for calls in ([], None, [call])] == [Fault.NO_CALL, Fault.NO_CALL, None]
    assert [simple.fault(calls) for calls in ([], None, [call])] == [Fault.COUNT, Fault.NO_CALL, None]
    assert both.fault([Call("m.sub", {"a": {"k": 1}}), call]) is None


@pytest.mark.parametrize(
    ("category", "row", "answer", "message"),
    [
        ("simple_python", {"id": "a"}, None, "no question: KeyError"),
        ("simple_python", {"id": "a", "question": [[], []], "function": []}, None, "2 turns; expected one"),
        ("simple_python", "{", None, "line 1: not valid JSON at column 2"),
        ("simple_python", {}, {"id": "s0", "ground_truth": []}, "there is no answer to s0"),
        ("simple_python", {}, {"id": "s0", "ground_truth": [{"f": {}}]}, "the answer to s0 calls 'f'"),
        ("simple_python", {}, {"id": "s0", "ground_truth": [{"m.add": {"a": 1}}]}, "s0 accepts 1 as 'a' of m.add"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": " "}]], "function": []}, None,
         "question a says nothing"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": None}]], "function": []}, None,
         "question a says nothing"),
        ("simple_python", {"id": "a", "question": [[{"role": "user", "content": "?"}]],
                           "function": [{"name": "f", "parameters": {"properties": {}, "required": "city"}}]}, None,
         "row 1: no function's schema: f requires 'city', which is no list"),
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
    """Where entries are looked at; what is only compared stays as it is."""
    properties = {
        "d": {"type": "dict"},
        "l": {"type": "array", "items": {"type": "dict"}},
        "p": {"type": "array", "items": {"type": "string"}},
        "s": {"type": "any"},
    }
    offered = {"name": "f", "parameters": {"type": "dict", "properties": properties}}
    question = {"id": "q", "question": [[{"role": "user", "content": "?"}]], "function": [offered]}
    bare = {"city": "Rome", "lat": -74.006, "in": {"a": 1}, "far": [5, ""]}
    due = {"d": ["", bare], "l": [[bare, bare], "name"], "p": [[bare]], "s": [bare], "unknown": [bare]}
    (tmp_path / "possible_answer").mkdir()
    file = "BFCL_v4_simple_python.json"
    (tmp_path / file).write_text(json.dumps(question))
    (tmp_path / "possible_answer" / file).write_text(json.dumps({"id": "q", "ground_truth": [{"f": due}]}))
    [[read], _] = read_bfcl(tmp_path)
    listed = {"city": ["Rome"], "lat": [-74.006], "in": [{"a": 1}], "far": [5, ""]}
    assert read.accepted == (
        {"f": {"d": ["", listed], "l": [[listed, listed], "name"], "p": [[bare]], "s": [bare], "unknown": [bare]}},
    )
    right = {"city": "rome", "lat": -74.006, "in": {"a": 1}}
    given = {"l": [right, right], "p": [bare], "s": bare}
    read = replace(read, accepted=({"f": read.accepted[0]["f"] | {"unknown": [""]}},))
    assert read.fault([Call("f", {"d": right} | given)]) is None
    # A text is no list of its letters.
    assert read.fault([Call("f", {"d": right | {"city": "R"}} | given)]) == Fault.VALUE
    assert read.fault([Call("f", {"d": {"city": "Rome"}} | given)]) == Fault.VALUE


def test_evenly_spaced(bfcl):
    questions = read_bfcl(bfcl)[0]
    assert [each.id for each in spread(questions, 3)] == ["i0", "p0", "s0"]
    assert [each.id for each in spread(questions, 4)] == ["i0", "r0", "j0", "s0"]
    assert spread(questions, 6) == spread(questions, 60) == questions
    assert spread([], 3) == []


def test_nothing_to_measure(tmp_path, bfcl):
    with pytest.raises(DataError, match="there is no file BFCL_v"):
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
    for each in questions:
        taken = {function.name: function.arguments for function in each.functions}
        calls = [
            Call(name, {k: first(v) for k, values in due[name].items() if k in taken[name] for v in given(values)})
            for due in each.accepted
            for name in due
        ]
        assert each.fault(calls) is None, each.id


def given(values):
    """The first value that is one, where there is any."""
    return [value for value in values if value != ""][:1]


def first(value):
    """Of a dict's accepted values the first, also in lists."""
    if isinstance(value, dict):
        return {k: each[0] if isinstance(each, list) and each else each for k, each in value.items() if each != [""]}
    return [first(each) for each in value] if isinstance(value, list) else value
