"""Calls read from a model's answer: Python's, Java's or JavaScript's syntax, or JSON."""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from penchant.evaluation.tool_calls.calls import Call, Function, Language

MOST_DIGITS = 30
"""Of a number in arithmetic that is worked out; larger ones stay text."""


def read_calls(answer: str, language: Language = "python") -> list[Call] | None:
    """The calls of ``[name(argument=value, ...), ...]``; the brackets may be left out.

    Returns:
        None where the answer is anything else.
    """
    text = answer.strip("`\n ")
    if not text.startswith("["):
        text = "[" + text
    if not text.endswith("]"):
        text += "]"
    try:
        return _python(text) if language == "python" else list(_other(text[1:-1]))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def read_json_calls(answer: str, functions: Sequence[Function]) -> list[Call] | None:
    """The calls of ``{"name": ..., "arguments": {...}}``: one, a list, or each in ``<tool_call>`` tags.

    Args:
        functions: on offer. Many chat templates forbid dots in names; a name in which they became underscores is
            read as the function's own.

    Returns:
        None where the answer is anything else.
    """
    tagged = re.findall(r"<tool_call>\s*(.*?)\s*</tool_call>", answer, re.DOTALL)
    own = {native_name(function.name): function.name for function in functions}
    try:
        found = [json.loads(text) for text in tagged] if tagged else json.loads(answer.strip("`\n "))
        calls = []
        for each in found if isinstance(found, list) else [found]:
            each = each.get("function", each)
            arguments = each.get("arguments", each.get("parameters", {}))
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if not isinstance(each["name"], str) or not isinstance(arguments, dict):
                return None
            calls.append(Call(own.get(each["name"], each["name"]), arguments))
        return calls
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def native_name(name: str) -> str:
    """A function's name without the characters that chat templates and endpoints forbid."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", name)


def write_calls(calls: Sequence[Call]) -> str:
    """As `read_calls` reads them."""
    return (
        "["
        + ", ".join(
            f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})" for call in calls
        )
        + "]"
    )


def _python(text: str) -> list[Call]:
    with warnings.catch_warnings():
        # Of literals that Python means to refuse one day, as in 5or and "\d": a model's, and no program's.
        warnings.simplefilter("ignore")
        body = ast.parse(text.strip("'"), mode="eval").body
    if not isinstance(body, ast.List) or not all(isinstance(each, ast.Call) for each in body.elts):
        raise ValueError("no list of calls")
    return [_call(each) for each in body.elts if isinstance(each, ast.Call)]


def _call(node: ast.Call) -> Call:
    if not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError("a call of something without a name")
    if any(each.arg is None for each in node.keywords):
        raise ValueError("arguments that are unpacked")
    return Call(ast.unparse(node.func), {str(each.arg): _value(each.value) for each in node.keywords})


def _value(node: ast.expr) -> Any:
    """A literal's value; a name, a call without arguments by name and anything indexed as its text."""
    match node:
        case ast.Constant():
            return "..." if node.value is Ellipsis else node.value
        case ast.List():
            return [_value(each) for each in node.elts]
        case ast.Tuple():
            return tuple(_value(each) for each in node.elts)
        case ast.Dict():
            # An unhashable key is a TypeError: no calls.
            return {_value(key): _value(each) for key, each in zip(node.keys, node.values, strict=True) if key}
        case ast.UnaryOp() | ast.BinOp():
            return _arithmetic(node)
        case ast.Name():
            return node.id
        case ast.Call() if node.keywords:
            call = _call(node)
            return {call.name: dict(call.arguments)}
        case ast.Call() | ast.Subscript():
            return ast.unparse(node)
    raise ValueError(f"a value of kind {type(node).__name__}")


OPERATORS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Not: operator.not_,
}  # fmt: skip


def _arithmetic(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=int() | float() as value):
            return value
        case ast.UnaryOp() if type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](_arithmetic(node.operand))
        case ast.BinOp() if type(node.op) in OPERATORS:
            left, right = _arithmetic(node.left), _arithmetic(node.right)
            if isinstance(node.op, ast.Pow) and (abs(right) > MOST_DIGITS or abs(left) > 10**MOST_DIGITS):
                raise ValueError("a number too large")
            try:
                return OPERATORS[type(node.op)](left, right)
            except ArithmeticError as error:
                raise ValueError("no number") from error
    raise ValueError("arithmetic of something else than numbers")


def _other(text: str) -> Iterator[Call]:
    """Calls whose arguments are literals of another language: the text of each, quotes around a string taken off."""
    for part in _split(text):
        found = re.fullmatch(r"\s*([A-Za-z_$][\w$.]*)\s*\((.*)\)\s*;?\s*", part, re.DOTALL)
        if not found:
            raise ValueError("no call")
        arguments: dict[str, str] = {}
        for pair in _split(found[2]):
            named = re.fullmatch(r"\s*([A-Za-z_$][\w$]*)\s*=(?!=)\s*(.*?)\s*", pair, re.DOTALL)
            if not named or named[1] in arguments:
                raise ValueError("an argument without a name, or a name twice")
            value = named[2]
            quoted = len(value) > 1 and value[0] in "\"'" and _closes(value) == len(value)
            arguments[named[1]] = value[1:-1] if quoted else value
        yield Call(found[1], arguments)


def _split(text: str) -> list[str]:
    """At the commas that are in no bracket and no string; nothing at all for white space."""
    parts, depth, start, n = [], 0, 0, 0
    while n < len(text):
        letter = text[n]
        if letter in "\"'":
            n += _closes(text[n:]) - 1
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[start:n])
            start = n + 1
        n += 1
    if depth:
        raise ValueError("a bracket without its other")
    return [*parts, text[start:]] if text.strip() else []


def _closes(text: str) -> int:
    """How long the string at the beginning is, with its quotes."""
    found = re.match(r"""(["'])(?:\\.|(?!\1).)*\1""", text, re.DOTALL)
    if not found:
        raise ValueError("a string without an end")
    return len(found[0])
