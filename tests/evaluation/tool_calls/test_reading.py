"""Calls read from answers."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.evaluation.tool_calls.calls import Call, Function
from penchant.evaluation.tool_calls.reading import native_name, read_calls, read_json_calls, write_calls

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3))
def test_what_is_written_is_read(made):
    calls = [Call(name, arguments) for name, arguments in made]
    assert read_calls(write_calls(calls)) == calls


@pytest.mark.parametrize(
    ("answer", "calls"),
    [
        ("[]", []),
        ("f(a=1)", [Call("f", {"a": 1})]),
        ("```\n[a.b.f(x='y'), g()]\n```", [Call("a.b.f", {"x": "y"}), Call("g", {})]),
        ("f(a=-1, b=2*3, c=name)", [Call("f", {"a": -1, "b": 6, "c": "name"})]),
        ("f(d=g(e=1), e=h(), f=x[0])", [Call("f", {"d": {"g": {"e": 1}}, "e": "h()", "f": "x[0]"})]),
        ("f(g=(1, 2), h=...)", [Call("f", {"g": (1, 2), "h": "..."})]),
        # By position is not by name.
        ("f(1, a=2)", [Call("f", {"a": 2})]),
        ("I cannot do that.", None),
        ("f(a=1", None),
        ("[1, 2]", None),
        ("", []),
        ("f(**a)", None),
        ("f(a=9**9**9)", None),
        ("f(a=1/0)", None),
        ("f(a={[]: 1})", None),
        ("f(a=__import__('os').system('x'))", [Call("f", {"a": "__import__('os').system('x')"})]),
        ("(" * 500 + "f()", None),
    ],
)  # fmt: skip
def test_python(answer, calls):
    assert read_calls(answer) == calls


@pytest.mark.filterwarnings("error")
def test_odd_literals_are_read_without_a_word():
    assert read_calls("f(a=1if 2else 3)") is None
    assert read_calls(r"f(a='\d')") == [Call("f", {"a": r"\d"})]


@pytest.mark.parametrize("language", ["java", "javascript"])
def test_other_languages(language):
    answer = '[A.b(x="a, b", y=new int[]{1, 2}, z=\'c\'), f(o={k: [1, 2]}, p="a" + "b"), g()]'
    assert read_calls(answer, language) == [
        Call("A.b", {"x": "a, b", "y": "new int[]{1, 2}", "z": "c"}),
        Call("f", {"o": "{k: [1, 2]}", "p": '"a" + "b"'}),
        Call("g", {}),
    ]
    for wrong in ("Sorry, no.", "f(1)", "f(a=1, a=2)", "f(a=(1)", 'f(a="x)'):
        assert read_calls(wrong, language) is None


def test_json():
    known = Function.read({"name": "a.f", "parameters": {"properties": {}}}, "test")
    assert native_name("a.f") == "a_f"
    call = '{"name": "a_f", "arguments": {"x": [1]}}'
    expected = [Call("a.f", {"x": [1]})]
    for answer in (call, f"[{call}]", f"Sure.\n<tool_call>\n{call}\n</tool_call>", f"```{call}```"):
        assert read_json_calls(answer, [known]) == expected
    assert read_json_calls('[{"function": {"name": "g", "arguments": "{\\"x\\": 1}"}}]', [known]) == [
        Call("g", {"x": 1})
    ]
    for wrong in ("No.", "5", '{"name": 5}', '{"name": "f", "arguments": 3}', '{"arguments": {}}', '[["f"]]'):
        assert read_json_calls(wrong, [known]) is None
