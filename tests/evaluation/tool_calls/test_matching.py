"""The rules by which calls are held against accepted ones, each by its smallest case.

`benchmarks/bfcl_agreement.py` compares them with the official checker on tens of thousands of answers.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Call, Fault, Function
from penchant.evaluation.tool_calls.matching import match_calls


def function(name="f", required=(), **types):
    properties = {
        key: {"type": kind} if isinstance(kind, str) else {"type": kind[0], "items": {"type": kind[1]}}
        for key, kind in types.items()
    }
    return Function.read({"name": name, "parameters": {"properties": properties, "required": list(required)}}, "test")


def one(kind, value, *accepted, language="python"):
    return match_calls([Call("f", {"x": value})], [function(x=kind)], [{"f": {"x": list(accepted)}}], language=language)


@pytest.mark.parametrize(
    ("kind", "value", "accepted", "fault"),
    [
        ("string", "NEW york", ["New York, NY", "new-york"], None),
        ("string", "don't", ['don"t'], None),
        ("string", "York", ["New York"], Fault.VALUE),
        ("string", 5, ["5"], Fault.TYPE),
        ("integer", 5, [4, 5], None),
        ("integer", 5.0, [5], Fault.TYPE),
        ("integer", True, [1], Fault.TYPE),
        ("float", 5, [5.0], None),
        ("float", 5, [5], None),
        ("float", 5.1, [5.0], Fault.VALUE),
        ("boolean", 1, [True], Fault.TYPE),
        # A variable's name where a number was due: as it stands, or not at all.
        ("integer", "count", ["count"], None),
        ("integer", "Count", ["count"], Fault.VALUE),
        ("any", 3, [3], None),
        ("any", "A b", ["ab"], None),
        # Nothing but leaving it out is right.
        ("integer", 5, [""], Fault.VALUE),
        (("array", "string"), ["A", "b."], [["a", "B"]], None),
        (("array", "string"), ["b", "a"], [["a", "b"]], Fault.VALUE),
        (("array", "integer"), [1, 2.0], [[1, 2]], Fault.TYPE),
        (("array", "integer"), (1, 2), [[1, 2]], Fault.TYPE),
        (("tuple", "integer"), (1, 2), [[1, 2]], None),
        (("array", "array"), [["A"]], [[["a"]]], Fault.VALUE),
        (("array", "integer"), [], ["", [1]], None),
        ("dict", {"a": "X Y", "b": 2}, [{"a": ["xy"], "b": [2]}], None),
        ("dict", {"a": "X Y"}, [{"a": ["xy"], "b": [2]}], Fault.VALUE),
        ("dict", {"a": "X Y"}, ["", {"a": ["xy"], "b": [2, ""]}], None),
        ("dict", {"a": "X Y", "c": 1}, [{"a": ["xy"]}], Fault.VALUE),
        (("array", "dict"), [{"a": 1}, {"a": 2}], [[{"a": [1]}, {"a": [2, 3]}]], None),
        (("array", "dict"), [{"a": 2}, {"a": 1}], [[{"a": [1]}, {"a": [2, 3]}]], Fault.VALUE),
        (("array", "dict"), [{"a": 1}], [[{"a": [1]}, {"a": [2]}]], Fault.VALUE),
    ],
)
def test_values(kind, value, accepted, fault):
    assert one(kind, value, *accepted) == fault


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (Call("f", {"a": 1, "b": 2}), None),
        (Call("f", {"a": 1}), None),
        (Call("g", {"a": 1}), Fault.FUNCTION),
        (Call("f", {"b": 2}), Fault.MISSING),
        (Call("f", {"a": 1, "d": 2}), Fault.UNKNOWN),
        # The function takes it; nothing here asked for it.
        (Call("f", {"a": 1, "c": 2}), Fault.UNKNOWN),
    ],
)
def test_arguments(call, fault):
    known = function(required=["a"], a="integer", b="integer", c="integer")
    assert match_calls([call], [known], [{"f": {"a": [1], "b": [2, ""]}}]) == fault


def test_an_argument_that_is_needed_though_the_function_can_do_without():
    known = function(required=["a"], a="integer", b="integer")
    assert match_calls([Call("f", {"a": 1})], [known], [{"f": {"a": [1], "b": [2]}}]) == Fault.LEFT_OUT


def test_parallel_calls_in_any_order():
    known = [function("f", a="integer"), function("g", a="integer")]
    due = [{"f": {"a": [1]}}, {"g": {"a": [1]}}, {"f": {"a": [2]}}]
    calls = [Call("f", {"a": 2}), Call("f", {"a": 1}), Call("g", {"a": 1})]
    assert match_calls(calls, known, due) is None
    assert match_calls([calls[0], *calls[:2]], known, due) == Fault.UNMATCHED
    assert match_calls(calls[:2], known, due) == Fault.COUNT
    # One call does not serve twice.
    assert match_calls([calls[1], calls[0], calls[0]], known, [due[0], due[2], due[2]]) is None
    assert match_calls([calls[1], calls[1], calls[0]], known, [due[0], due[2], due[2]]) == Fault.UNMATCHED


@given(st.permutations([Call("f", {"a": n}) for n in range(4)]))
def test_order_never_matters(calls):
    known = [function("f", a="integer")]
    assert match_calls(calls, known, [{"f": {"a": [n]}} for n in range(4)]) is None


@pytest.mark.parametrize(
    ("language", "kind", "value", "accepted", "fault"),
    [
        ("java", "long", "5L", [5], None),
        ("java", "long", "5", [5], Fault.TYPE),
        ("java", "integer", 5, [5], Fault.TYPE),
        ("java", "String", "a B", ["ab"], None),
        ("java", ("ArrayList", "String"), 'new ArrayList<>(Arrays.asList("a", "b"))', [["A", "B"]], None),
        ("java", "HashMap", 'new HashMap<>() {{ put("k", 1); }}', [{"k": [1]}], None),
        ("javascript", "Bigint", "5n", [5], None),
        ("javascript", "Boolean", "true", [True], None),
        ("javascript", ("array", "integer"), "[1, 2]", [[1, 2]], None),
        ("javascript", "dict", "{k: 1}", [{"k": [1]}], None),
        ("javascript", "dict", "options", ["options"], None),
    ],
)
def test_other_languages(language, kind, value, accepted, fault):
    assert one(kind, value, *accepted, language=language) == fault


@pytest.mark.parametrize(
    "schema", [{}, {"name": "f", "parameters": {"properties": {"a": {}}}}, {"name": "f", "parameters": 1}]
)
def test_no_schema(schema):
    with pytest.raises(DataError, match="no function's schema"):
        Function.read(schema, "test")
