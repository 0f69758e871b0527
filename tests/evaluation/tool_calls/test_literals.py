"""Tests of the values of Java and JavaScript literals."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.evaluation.tool_calls.matching import _rows, java, javascript

ROWS = r"\[.*?\]\s*(,\s*\[.*?\]\s*)*"
PIECES = st.sampled_from(["[", "]", "],[", "], [", ",", "1", " ", "\n", ")", "[[", "]]"])


@pytest.mark.parametrize(
    ("text", "kind", "items", "value"),
    [
        ("12", "integer", None, 12),
        ("-7", "byte", None, -7),
        ("1.5", "integer", None, "1.5"),
        ("7L", "long", None, 7),
        ("7", "long", None, "7"),
        ("1.5f", "float", None, 1.5),
        ("1.5", "float", None, "1.5"),
        ("2e3", "double", None, 2000.0),
        ("true", "boolean", None, True),
        ("True", "boolean", None, "True"),
        ("x", "char", None, "x"),
        ("5", "any", None, "5"),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ('new Object[] {1, true, 2L, 1.5f, "a", b}', "Array", None, [1, True, 2, 1.5, "a", "b"]),
        ("numbers", "Array", "integer", "numbers"),
        ("new ArrayList<Integer>(Arrays.asList(1, 2))", "ArrayList", "integer", [1, 2]),
        ("new ArrayList<>() {{ add('a'); add('b'); }}", "ArrayList", "char", ["a", "b"]),
        ("new ArrayList<>()", "ArrayList", "integer", []),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "x"); }}', "HashMap", None, {"a": 1, "b": "x"}),
        ("new HashMap<>()", "HashMap", None, {}),
        ("settings", "HashMap", None, "settings"),
    ],
)
def test_java(text, kind, items, value):
    result = java(text, kind, items)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "items", "value"),
    [
        ('"a"', "String", None, "a"),
        ("a", "String", None, "a"),
        ("12", "integer", None, 12),
        ("1e3", "float", None, "1e3"),
        ("1.5", "float", None, 1.5),
        ("12n", "Bigint", None, 12),
        ("true", "Boolean", None, True),
        ("5", "any", None, "5"),
        ("[1, 2]", "array", "integer", [1, 2]),
        ("[]", "array", "integer", []),
        ("new Array('a', \"b\")", "array", "String", ["a", "b"]),
        ("[[1, 2], ['a']]", "array", "array", [[1, 2], ["a"]]),
        ("[true, 1.5, x]", "array", None, [True, 1.5, "x"]),
        ("{}", "dict", None, {}),
        ("{a: 1, 'b': [1, 2], c: true}", "dict", None, {"a": 1, "b": [1, 2], "c": True}),
        ("settings", "dict", None, "settings"),
    ],
)
def test_javascript(text, kind, items, value):
    result = javascript(text, kind, items)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.slow
@settings(deadline=None, max_examples=2000)
@given(st.sampled_from(["", "[[", "new Array([", "new  Array( ["]), st.lists(PIECES, max_size=14))
def test_rows_are_what_the_official_expression_matches(opening, pieces):
    text = (opening + "".join(pieces)).strip()
    match = re.match(rf"\[\s*{ROWS}\]|\bnew\s+Array\(\s*{ROWS}\)", text)
    assert _rows(text) == (None if match is None else match[0])


def test_many_rows_are_read_in_quadratic_time():
    rows = ",".join(["[1]"] * 300)
    assert javascript(f"[{rows}]", "array") == [[1]] * 300
    assert len(javascript(f"[{rows},1]", "array")) == 1
