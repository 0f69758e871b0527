"""Calls in the syntax of Java and JavaScript, split where a parser of the language would split them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from penchant.evaluation.tool_calls.calls import Call, Language

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
