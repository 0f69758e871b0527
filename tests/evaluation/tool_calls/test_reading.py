"""Tests of calls read from answers."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.evaluation.tool_calls.calls import Call, Function
from penchant.evaluation.tool_calls.reading import (
    native_name,
    read_calls,
    read_json_calls,
    read_native_calls,
    write_calls,
)

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.slow
@given(st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), min_size=1, max_size=3))
def test_written_calls_are_read_back(pairs):
    calls = [Call(name, arguments) for name, arguments in pairs]
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
        # Positional arguments are ignored.
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
def test_odd_literals_raise_no_warning():
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


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ("[f(m=new HashMap<String, Integer>())]", {"m": "new HashMap<String, Integer>()"}),
        (
            "f(m=new HashMap<String, List<Map<Integer, String>>>(), n=1)",
            {"m": "new HashMap<String, List<Map<Integer, String>>>()", "n": "1"},
        ),
        ("f(m=new HashMap<>(), n=2)", {"m": "new HashMap<>()", "n": "2"}),
        ("f(a=new Pair<String[], ? extends T>[3], b=1)", {"a": "new Pair<String[], ? extends T>[3]", "b": "1"}),
        ("f(a=Map.<String, Integer>of(), b=1)", {"a": "Map.<String, Integer>of()", "b": "1"}),
        ("f(a=(Map<String, Integer>) x, b=1)", {"a": "(Map<String, Integer>) x", "b": "1"}),
        ("f(a=i < n, b=n > (i), c=1 << 2)", {"a": "i < n", "b": "n > (i)", "c": "1 << 2"}),
        ('f(t="""a, "b" (c""", b=1)', {"t": '""a, "b" (c""', "b": "1"}),
        ("f(r=(a, b) -> a + b, b=new int[][]{{1, 2}, {3}})", {"r": "(a, b) -> a + b", "b": "new int[][]{{1, 2}, {3}}"}),
    ],
)
def test_java(answer, arguments):
    assert read_calls(answer, "java") == [Call("f", arguments)]


@pytest.mark.parametrize(
    ("answer", "arguments"),
    [
        ("[f(m=new Map([['a', 1], ['b', 2]]), n=1)]", {"m": "new Map([['a', 1], ['b', 2]])", "n": "1"}),
        ("f(g=(a, b) => a + b, h=x => x * 2)", {"g": "(a, b) => a + b", "h": "x => x * 2"}),
        (
            "f(g=async (a) => { return [a, 1]; }, h=function (a, b) { return a; })",
            {"g": "async (a) => { return [a, 1]; }", "h": "function (a, b) { return a; }"},
        ),
        ("f(t=`a, (b`, n=1)", {"t": "`a, (b`", "n": "1"}),
        ("f(t=`${g('}', `x, ${y}`)}, )`, n=1)", {"t": "`${g('}', `x, ${y}`)}, )`", "n": "1"}),
        ("f(r=/[,(/]+\\/, x/gi, n=6 / 3, m=a / b)", {"r": "/[,(/]+\\/, x/gi", "n": "6 / 3", "m": "a / b"}),
    ],
)
def test_javascript(answer, arguments):
    assert read_calls(answer, "javascript") == [Call("f", arguments)]


@pytest.mark.parametrize("wrong", ["f(t=`a, b)", "f(t=`${a`, n=1)", "f(a=new Map<string, number>())"])
def test_javascript_that_is_none(wrong):
    assert read_calls(wrong, "javascript") is None


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [
        ("<think>\nPerhaps [g(b=2)].\n</think>\n\n", ""),
        # Where the template opens the block, the answer only closes it.
        ("Perhaps [g(b=2)].\n</think>\n", ""),
        ("<think>g</think> so <think>h</think>", "\n"),
        ("```python\n", "\n```"),
        ("```\n", "\n```"),
        ("<think>x</think>```json\n", "```"),
    ],
)
def test_thinking_and_fences_are_left_out(prefix, suffix):
    assert read_calls(f"{prefix}[f(a=1)]{suffix}") == [Call("f", {"a": 1})]
    call = '{"name": "f", "arguments": {"a": 1}}'
    for text in (call, f"[{call}]", f"<tool_call>\n{call}\n</tool_call>"):
        assert read_json_calls(f"{prefix}{text}{suffix}", []) == [Call("f", {"a": 1})]


def test_thinking_that_never_ends_is_no_answer():
    assert read_calls("<think>\n[f(a=1)]") is None
    assert read_json_calls('<think><tool_call>{"name": "f", "arguments": {}}</tool_call>', []) is None


def test_tags_in_a_string_are_a_string():
    assert read_calls('[f(a="</think>")]') == [Call("f", {"a": "</think>"})]
    assert read_json_calls('{"name": "f", "arguments": {"a": "</think>"}}', []) == [Call("f", {"a": "</think>"})]


def test_json_as_the_official_handlers_read_it():
    call_f, call_g = '{"name": "f", "arguments": {"a": 1}}', '{"name": "g", "parameters": {}}'
    calls = [Call("f", {"a": 1}), Call("g", {})]
    for answer in (
        f"{call_f}\n{call_g}",
        f"{call_f}; {call_g}",
        f"<|python_tag|>{call_f}; {call_g}",
        f"<tool_call>\n{call_f}\n</tool_call>\n<tool_call>\n{call_g}",
        f"<tool_call>{call_f}<tool_call>{call_g}</tool_call>",
        f"<tool_call>\n{call_f}\n{call_g}\n</tool_call>",
        f"<tool_call>\n```json\n[{call_f}, {call_g}]\n```\n</tool_call>",
        f"<tool_call>{call_f}</tool_call><tool_call>not this</tool_call><tool_call>{call_g}</tool_call>",
    ):
        assert read_json_calls(answer, []) == calls, answer
    for wrong in ("", "<tool_call>", "<tool_call>no</tool_call>", f"{call_f} and", f"{call_f}; no"):
        assert read_json_calls(wrong, []) is None, wrong
    assert read_json_calls("[]", []) == []


def test_json():
    offered_function = Function.read({"name": "a.f", "parameters": {"properties": {}}}, "test")
    assert native_name("a.f") == "a_f"
    call = '{"name": "a_f", "arguments": {"x": [1]}}'
    expected = [Call("a.f", {"x": [1]})]
    for answer in (call, f"[{call}]", f"Sure.\n<tool_call>\n{call}\n</tool_call>", f"```{call}```"):
        assert read_json_calls(answer, [offered_function]) == expected
    assert read_json_calls('[{"function": {"name": "g", "arguments": "{\\"x\\": 1}"}}]', [offered_function]) == [
        Call("g", {"x": 1})
    ]
    for wrong in ("No.", "5", '{"name": 5}', '{"name": "f", "arguments": 3}', '{"arguments": {}}', '[["f"]]'):
        assert read_json_calls(wrong, [offered_function]) is None


def test_arguments_that_are_called_parameters():
    assert read_json_calls('{"name": "f", "parameters": {"a": 1}}', []) == [Call("f", {"a": 1})]


def test_a_comma_after_an_inner_generic_belongs_to_the_outer_one():
    answer = "f(m=new HashMap<List<Integer>, String>(), n=1)"
    assert read_calls(answer, "java") == [Call("f", {"m": "new HashMap<List<Integer>, String>()", "n": "1"})]


@pytest.mark.parametrize(
    "answer",
    [
        '{"name": "m_f", "arguments": {"a": 1}}',
        '<tool_call>[{"name": "m_f", "arguments": {"a": 1}}]</tool_call>',
        '<|python_tag|>{"name": "m_f", "parameters": {"a": 1}}',
        '[TOOL_CALLS][{"name": "m_f", "arguments": {"a": 1}}]',
        "[m_f(a=1)]",
        "[m.f(a=1)]",
        "<|tool_call_start|>[m_f(a=1)]<|tool_call_end|>",
    ],
)
def test_the_forms_of_chat_templates(answer):
    function = Function.read({"name": "m.f", "parameters": {"properties": {"a": {"type": "integer"}}}}, "test")
    assert read_native_calls(answer, [function]) == [Call("m.f", {"a": 1})]


@pytest.mark.parametrize("answer", ["m_f(a=1)", "Use [m_f(a=1)].", "[1, 2", "None of the functions serves.", ""])
def test_words_are_no_native_calls(answer):
    assert not read_native_calls(answer, [])
