"""Calls read from a model's answer, in the syntax of Python, Java or JavaScript, or in JSON."""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.evaluation.tool_calls.calls import Call, DueCall, Function, Language

OPENING, CLOSING = "([{", ")]}"

TYPE_ARGUMENTS = re.compile(r"[\w$\s.,?&@\[\]<>]*")
"""The characters inside the angle brackets of a generic type, without ``=``, which marks a comparison."""

REGULAR_EXPRESSION = re.compile(r"/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+/[a-z]*")

BEFORE_EXPRESSION = "=(,:[!&|?{};>"
"""After these characters a slash in JavaScript begins a regular expression; after others it divides."""


def read_foreign_calls(text: str, language: Language) -> Iterator[Call]:
    """The calls in a text. Argument values are texts as written, a string's without its quotes.

    Args:
        text: calls separated by commas.
        language: ``java`` or ``javascript``.

    Raises:
        ValueError: the text is anything else.
    """
    for part in _split(text, language):
        call = re.fullmatch(r"\s*([A-Za-z_$][\w$.]*)\s*\((.*)\)\s*;?\s*", part, re.DOTALL)
        if not call:
            raise ValueError("not a call")
        arguments: dict[str, str] = {}
        for pair in _split(call[2], language):
            match = re.fullmatch(r"\s*([A-Za-z_$][\w$]*)\s*=(?!=)\s*(.*?)\s*", pair, re.DOTALL)
            if not match or match[1] in arguments:
                raise ValueError("an argument has no name, or two have the same name")
            value = match[2]
            is_quoted = len(value) > 1 and value[0] in "\"'" and _string_length(value, language) == len(value)
            arguments[match[1]] = value[1:-1] if is_quoted else value
        yield Call(call[1], arguments)


def _split(text: str, language: Language) -> list[str]:
    """The parts between commas outside of brackets and literals; none if the text is white space."""
    parts, depth, start, n = [], 0, 0, 0
    while n < len(text):
        skipped = _literal_length(text, n, language)
        if skipped:
            n += skipped
            continue
        letter = text[n]
        if letter in OPENING:
            depth += 1
        elif letter in CLOSING:
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:n])
            start = n + 1
        n += 1
    if depth:
        raise ValueError("a bracket has no counterpart")
    return [*parts, text[start:]] if text.strip() else []


def _literal_length(text: str, n: int, language: Language) -> int:
    """Length of the string, template, regular expression or type arguments at index `n`; 0 if there is none."""
    letter = text[n]
    if letter in "\"'":
        return _string_length(text[n:], language)
    if language == "java":
        return _type_arguments_length(text, n) if letter == "<" else 0
    if letter == "`":
        return _template_length(text, n)
    if letter == "/" and text[:n].rstrip()[-1:] in BEFORE_EXPRESSION:
        expression = REGULAR_EXPRESSION.match(text, n)
        return len(expression[0]) if expression else 0
    return 0


def _string_length(text: str, language: Language) -> int:
    """Length of the string at the beginning, with its quotes."""
    block = re.match(r'"""(?:\\.|[^\\])*?"""', text, re.DOTALL) if language == "java" else None
    string = block or re.match(r"""(["'])(?:\\.|(?!\1).)*\1""", text, re.DOTALL)
    if not string:
        raise ValueError("a string has no end")
    return len(string[0])


def _type_arguments_length(text: str, start: int) -> int:
    """Length of ``<String, List<Integer>>`` at an index; 0 where the bracket is a comparison."""
    match = TYPE_ARGUMENTS.match(text, start)
    depth = 0
    for n, letter in enumerate(match[0] if match else ""):
        depth += (letter == "<") - (letter == ">")
        if depth == 0:
            return n + 1
    return 0


def _template_length(text: str, start: int) -> int:
    """Length of the template literal at an index, with its substitutions."""
    n = start + 1
    while n < len(text):
        if text[n] == "`":
            return n + 1 - start
        if text.startswith("${", n):
            n = _substitution_end(text, n + 2)
        else:
            n += 2 if text[n] == "\\" else 1
    raise ValueError("a template has no end")


def _substitution_end(text: str, n: int) -> int:
    """Index after the brace that closes a substitution."""
    depth = 1
    while n < len(text):
        skipped = _literal_length(text, n, "javascript")
        if not skipped:
            depth += (text[n] in OPENING) - (text[n] in CLOSING)
        n += skipped or 1
        if depth == 0:
            return n
    raise ValueError("a substitution has no end")


FENCES = ("json", "python", "tool_code", "java", "javascript", "js")
"""The language names after the backticks that open a code block."""

MAX_DIGITS = 30
"""Maximal digits of the operands of a power that is evaluated."""


def read_calls(answer: str, language: Language = "python") -> list[Call] | None:
    """The calls of ``[name(argument=value, ...), ...]``; the brackets may be left out.

    Thinking before the answer and a code fence around it are ignored.

    Returns:
        The calls; None if the answer is anything else.
    """
    text = _answer_alone(answer)
    if text is None:
        return None
    if not text.startswith("["):
        text = "[" + text
    if not text.endswith("]"):
        text += "]"
    try:
        return _parse_python(text) if language == "python" else list(read_foreign_calls(text[1:-1], language))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def read_json_calls(answer: str, functions: Sequence[Function]) -> list[Call] | None:
    """The calls of ``{"name": ..., "arguments": {...}}``: one, a list, several in sequence, or in tags.

    The tags are ``<tool_call>``. The last tag need not be closed, and a tag that does not hold JSON is skipped, as the
    leaderboard's handlers do. Thinking before the answer and a code fence around it are ignored.

    Args:
        functions: the functions on offer. Many chat templates forbid dots in names; a name with underscores in place
            of the dots is read as the function's name.

    Returns:
        The calls; None if the answer is anything else.
    """
    text = _answer_alone(answer)
    if text is None:
        return None
    native_names = {native_name(function.name): function.name for function in functions}
    try:
        calls = []
        for value in _json_values(text):
            value = value.get("function", value)
            arguments = value.get("arguments", value.get("parameters", {}))
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(value["name"], str) or not isinstance(arguments, dict):
                return None
            calls.append(Call(native_names.get(value["name"], value["name"]), arguments))
        return calls
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def read_native_calls(answer: str, functions: Sequence[Function]) -> list[Call] | None:
    """The calls of an answer in the form of a model's chat template: JSON as in `read_json_calls`, or a list in Python.

    Args:
        functions: as in `read_json_calls`.

    Returns:
        The calls; None if the answer is anything else.
    """
    calls = read_json_calls(answer, functions)
    text = _answer_alone(answer) or ""
    for mark in MARKS:
        text = text.removeprefix(mark)
    if calls is not None or not text.startswith("["):
        return calls
    native_names = {native_name(function.name): function.name for function in functions}
    python_calls = read_calls(text.removesuffix(CLOSING_MARK))
    return python_calls and [replace(call, name=native_names.get(call.name, call.name)) for call in python_calls]


MARKS = ("<|python_tag|>", "[TOOL_CALLS]", "<|tool_call_start|>")
"""Control tokens of Llama, Mistral and LFM2 that begin calls; `CLOSING_MARK` is LFM2's."""

CLOSING_MARK = "<|tool_call_end|>"


def _answer_alone(answer: str) -> str | None:
    """The answer without the thinking before it and the code fence around it; None if the thinking has no end."""
    text = answer.strip()
    if not text.startswith(("[", "{", "<tool_call>")):
        *thoughts, text = text.split("</think>")
        if not thoughts and text.startswith("<think>"):
            return None
        text = text.strip()
    if text.startswith("```"):
        text = re.sub(rf"\A`+(?:{'|'.join(FENCES)})?(?=[\s\[{{])", "", text)
    return text.strip("`\n ")


def _json_values(text: str) -> list[Any]:
    """The values of an answer's JSON, with lists flattened.

    Raises:
        ValueError: no value can be read.
    """
    tagged = re.findall(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", text, re.DOTALL)
    if not tagged:
        for mark in MARKS:
            text = text.removeprefix(mark)
        return _values_in_sequence(text.removesuffix(CLOSING_MARK))
    values, problem = [], ValueError("not JSON")
    for part in tagged:
        try:
            values += _values_in_sequence(_answer_alone(part) or "")
        except ValueError as error:
            problem = error
    if not values:
        raise problem
    return values


def _values_in_sequence(text: str) -> list[Any]:
    """JSON values separated by white space, ``;`` or ``,``, with lists flattened."""
    values, decoder, start = [], json.JSONDecoder(), len(text) - len(text.lstrip())
    while start < len(text) or not text:
        value, end = decoder.raw_decode(text, start)
        values += value if isinstance(value, list) else [value]
        start = end + len(re.match(r"\s*[;,]?\s*", text[end:])[0])  # type: ignore[index]  # matches anything
    return values


def native_name(name: str) -> str:
    """A function's name without the characters that chat templates and endpoints forbid."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def write_calls(calls: Sequence[Call]) -> str:
    """The calls as a text that `read_calls` reads."""
    return (
        "["
        + ", ".join(
            f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})" for call in calls
        )
        + "]"
    )


def read_due_call(text: str) -> DueCall:
    """A call that is due, as the leaderboard's files write it; unlike an answer's, it may have positional arguments.

    Raises:
        ValueError: the text is anything else.
    """
    try:
        node = ast.parse(text, mode="eval").body
        if not isinstance(node, ast.Call):
            raise ValueError("not a call")
        call = _parse_call(node)
        return DueCall(call.name, tuple(map(_parse_value, node.args)), call.arguments)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error


def _parse_python(text: str) -> list[Call]:
    with warnings.catch_warnings():
        # Python warns of literals such as 5or and "\d"; they are the model's, and the user cannot change them.
        warnings.simplefilter("ignore")
        body = ast.parse(text.strip("'"), mode="eval").body
    if not isinstance(body, ast.List) or not all(isinstance(node, ast.Call) for node in body.elts):
        raise ValueError("not a list of calls")
    return [_parse_call(node) for node in body.elts if isinstance(node, ast.Call)]


def _parse_call(node: ast.Call) -> Call:
    if not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("the called function has no name")
    if any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("arguments are unpacked")
    return Call(ast.unparse(node.func), {str(keyword.arg): _parse_value(keyword.value) for keyword in node.keywords})


def _parse_value(node: ast.expr) -> Any:
    """The value of a literal; the source text of a name, a call without keyword arguments or a subscript."""
    match node:
        case ast.Constant():
            return "..." if node.value is Ellipsis else node.value
        case ast.List():
            return [_parse_value(element) for element in node.elts]
        case ast.Tuple():
            return tuple(_parse_value(element) for element in node.elts)
        case ast.Dict():
            # An unhashable key raises a TypeError, and the answer counts as one without calls.
            return {
                _parse_value(key): _parse_value(element)
                for key, element in zip(node.keys, node.values, strict=True)
                if key
            }
        case ast.UnaryOp() | ast.BinOp():
            return _evaluate_arithmetic(node)
        case ast.Name():
            return node.id
        case ast.Call() if node.keywords:
            call = _parse_call(node)
            return {call.name: dict(call.arguments)}
        case ast.Call() | ast.Subscript():
            return ast.unparse(node)
    raise ValueError(f"a value of kind {type(node).__name__}")


OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip


def _evaluate_arithmetic(node: ast.expr) -> Any:
    """The value of an expression of numbers, ``+ - * / // % **`` and ``not``."""
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](_evaluate_arithmetic(node.operand))
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = _evaluate_arithmetic(node.left), _evaluate_arithmetic(node.right)
            if isinstance(node.op, ast.Pow) and (abs(right) > MAX_DIGITS or abs(left) > 10**MAX_DIGITS):
                raise ValueError("a number is too large")
            try:
                return OPERATORS[type(node.op)](left, right)
            except ArithmeticError as error:
                raise ValueError("the result is not a number") from error
    raise ValueError("arithmetic with operands that are not numbers")
