"""Tests of the rules of matching calls with accepted ones, every rule in its smallest case.

`benchmarks/bfcl_agreement.py` compares them with the official checker on tens of thousands of answers.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.errors import DataError
from penchant.evaluation.tool_calls.calls import Argument, Call, Fault, Function
from penchant.evaluation.tool_calls.matching import (
    JAVA_TYPES,
    JAVASCRIPT_TYPES,
    PYTHON_TYPES,
    entries_as_lists,
    match_calls,
)
from penchant.evaluation.tool_calls.reading import read_calls, read_json_calls


def function(name="f", required=(), **types):
    properties = {
        key: {"type": kind} if isinstance(kind, str) else {"type": kind[0], "items": {"type": kind[1]}}
        for key, kind in types.items()
    }
    return Function.read({"name": name, "parameters": {"properties": properties, "required": list(required)}}, "test")


def fault_of_value(kind, value, *accepted, language="python"):
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
        # A variable's name for an accepted number must match exactly.
        ("integer", "count", ["count"], None),
        ("integer", "Count", ["count"], Fault.VALUE),
        ("any", 3, [3], None),
        ("any", "A b", ["ab"], None),
        # The argument may only be left out.
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
    assert fault_of_value(kind, value, *accepted) == fault


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (Call("f", {"a": 1, "b": 2}), None),
        (Call("f", {"a": 1}), None),
        (Call("g", {"a": 1}), Fault.FUNCTION),
        (Call("f", {"b": 2}), Fault.MISSING),
        (Call("f", {"a": 1, "d": 2}), Fault.UNKNOWN),
        # The function takes it, and the question does not accept it.
        (Call("f", {"a": 1, "c": 2}), Fault.UNKNOWN),
    ],
)
def test_arguments(call, fault):
    offered_function = function(required=["a"], a="integer", b="integer", c="integer")
    assert match_calls([call], [offered_function], [{"f": {"a": [1], "b": [2, ""]}}]) == fault


def test_an_accepted_argument_that_may_not_be_left_out():
    offered_function = function(required=["a"], a="integer", b="integer")
    assert match_calls([Call("f", {"a": 1})], [offered_function], [{"f": {"a": [1], "b": [2]}}]) == Fault.LEFT_OUT


def test_parallel_calls_in_any_order():
    functions = [function("f", a="integer"), function("g", a="integer")]
    accepted = [{"f": {"a": [1]}}, {"g": {"a": [1]}}, {"f": {"a": [2]}}]
    calls = [Call("f", {"a": 2}), Call("f", {"a": 1}), Call("g", {"a": 1})]
    assert match_calls(calls, functions, accepted) is None
    assert match_calls([calls[0], *calls[:2]], functions, accepted) == Fault.UNMATCHED
    assert match_calls(calls[:2], functions, accepted) == Fault.COUNT
    # One call does not match two accepted calls.
    assert match_calls([calls[1], calls[0], calls[0]], functions, [accepted[0], accepted[2], accepted[2]]) is None
    assert (
        match_calls([calls[1], calls[1], calls[0]], functions, [accepted[0], accepted[2], accepted[2]])
        == Fault.UNMATCHED
    )


@given(st.permutations([Call("f", {"a": n}) for n in range(4)]))
def test_order_never_matters(calls):
    functions = [function("f", a="integer")]
    assert match_calls(calls, functions, [{"f": {"a": [n]}} for n in range(4)]) is None


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
    assert fault_of_value(kind, value, *accepted, language=language) == fault


HUGE = 10**400


@pytest.mark.parametrize(
    ("language", "kind", "value", "accepted", "fault"),
    [
        # No float can hold the number, and int() refuses so many digits.
        ("python", "float", HUGE, [1.0], Fault.VALUE),
        ("python", "number", HUGE, [HUGE], Fault.VALUE),
        ("python", "integer", HUGE, [HUGE], None),
        ("java", "integer", "9" * 5000, [1], Fault.TYPE),
        ("java", "long", "9" * 5000 + "L", [1], Fault.TYPE),
        ("javascript", "Bigint", "9" * 5000 + "n", [1], Fault.TYPE),
        ("java", ("Array", "integer"), f"new int[]{{{'9' * 5000}}}", [[1]], Fault.TYPE),
        # A required entry of a dict that is no list.
        ("python", "dict", {}, [{"a": 1}], Fault.VALUE),
    ],
)
def test_what_the_official_checker_fails_on(language, kind, value, accepted, fault):
    assert fault_of_value(kind, value, *accepted, language=language) == fault


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.just(HUGE) | st.floats() | st.sampled_from(["", "a", "5", "a b"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
KINDS = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(st.data())
def test_every_value_that_can_be_read_is_scored(data):
    """Values are any that a reader returns, accepted values any that a file can hold."""
    language = data.draw(st.sampled_from(sorted(KINDS)))
    kinds = st.sampled_from([*KINDS[language], "unheard of"])
    schema = {"type": data.draw(kinds)} | ({"items": {"type": data.draw(kinds)}} if data.draw(st.booleans()) else {})
    offered_function = Function.read({"name": "f", "parameters": {"properties": {"x": schema}}}, "test")
    texts = st.sampled_from(
        ["[1, [2]]", "{a: [1], b: {c: 2}}", "new ArrayList<>(Arrays.asList(1, a))", "9" * 5000, "1e999", "new Array()"]
    )
    value = data.draw((JSON | st.tuples(JSON, JSON) | st.just(2j)) if language == "python" else texts | st.text())
    accepted = data.draw(st.lists(JSON, max_size=3))
    read = entries_as_lists(accepted, offered_function.arguments["x"], language)
    for values in (accepted, read):
        fault = match_calls([Call("f", {"x": value})], [offered_function], [{"f": {"x": values}}], language=language)
        assert fault is None or isinstance(fault, Fault)


@settings(deadline=None, max_examples=400)
@given(st.text(alphabet="f(x=)[]{},'\"0123456789.*/%-+e: \\nLj", max_size=30))
def test_every_answer_is_scored(text):
    offered_function = function(x="float")
    for language in KINDS:
        for answer in (text, f"f(x={text})"):
            calls = read_calls(answer, language)
            assert calls is None or isinstance(
                match_calls(calls, [offered_function], [{"f": {"x": [1.0]}}]), Fault | None
            )
    for answer in (text, f'{{"name": "f", "arguments": {{"x": {text}}}}}'):
        calls = read_json_calls(answer, [offered_function])
        assert calls is None or isinstance(match_calls(calls, [offered_function], [{"f": {"x": [1.0]}}]), Fault | None)


@pytest.mark.parametrize("answer", ["f(x=(10**30)**30)", f"f(x={'9' * 400})", "f(x=(-8)**0.5)", f"f(x={'9' * 5000})"])
def test_large_and_complex_numbers(answer):
    calls = read_calls(answer)
    assert calls is None or match_calls(calls, [function(x="float")], [{"f": {"x": [1.0]}}]) in (
        Fault.VALUE, Fault.TYPE
    )  # fmt: skip


PROPERTIES = {"x": {"type": "string"}}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({}, "KeyError('name')"),
        ({"name": "f", "parameters": 1}, "TypeError"),
        ({"name": 5, "parameters": {"properties": {}}}, "its name is 5"),
        ({"name": "f", "parameters": {"properties": {"x": {}}}}, "f.x has no type"),
        ({"name": "f", "parameters": {"properties": {"x": "string"}}}, "f.x is 'string', which is not a schema"),
        ({"name": "f", "parameters": {"properties": {"x": {"type": {"a": 1}}}}}, "{'a': 1} is not a type"),
        ({"name": "f", "parameters": {"properties": {"x": {"type": ["string", 5]}}}}, "['string', 5] is not a type"),
        (
            {"name": "f", "parameters": {"properties": {"x": {"type": "array", "items": {"type": 5}}}}},
            "5 is not a type",
        ),
        (
            {"name": "f", "parameters": {"properties": {"x": {"type": "array", "items": [{"type": "string"}]}}}},
            "an element of f.x is [{'type': 'string'}], which is not a schema",
        ),
        (
            {"name": "f", "parameters": {"properties": {"x": {"type": "string", "enum": "ab"}}}},
            "the enum of f.x is 'ab', which is not a list",
        ),
        (
            {"name": "f", "parameters": {"properties": {"x": {"type": "dict", "properties": ["a"]}}}},
            "the properties of f.x are ['a']",
        ),
        (
            {"name": "f", "parameters": {"properties": PROPERTIES, "required": "x"}},
            "f requires 'x', which is not a list",
        ),
        (
            {"name": "f", "parameters": {"properties": PROPERTIES, "required": ["x", "y"]}},
            "f requires 'y', which is not among its properties",
        ),
        ({"name": "f", "parameters": {"properties": PROPERTIES, "required": [["x"]]}}, "TypeError"),
    ],
)
def test_schemas_of_another_form_are_refused(schema, reason):
    with pytest.raises(DataError) as error:
        Function.read(schema, "test")
    assert str(error.value).startswith(f"test: not the schema of a function: {reason}")


def test_null_among_types_is_ignored():
    properties = {
        "a": {"type": ["null", "integer"]},
        "b": {"type": "array", "items": {"type": ["string", "null"]}},
        "c": {"type": ["string", "integer"], "enum": None, "items": None},
    }
    offered_function = Function.read({"name": "f", "parameters": {"properties": properties, "required": None}}, "test")
    assert offered_function.arguments == {
        "a": Argument("integer"),
        "b": Argument("array", "string"),
        "c": Argument("any"),
    }
    accepted = [{"f": {"a": [5], "b": [["x"]], "c": [7]}}]
    assert match_calls([Call("f", {"a": 5, "b": ["X"], "c": 7})], [offered_function], accepted) is None
    assert match_calls([Call("f", {"a": "5", "b": ["X"], "c": 7})], [offered_function], accepted) == Fault.TYPE
