"""The values of Java and JavaScript literals; a text that is not a literal of its type stays a text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Python's int() accepts at most 4300 digits.
WHOLE = r"-?\d{1,4300}"
DECIMAL = r"-?\d+(\.\d+)?"
SCIENTIFIC = rf"{DECIMAL}([eE][+-]?\d+)?"

JAVA_TYPES: dict[str, type] = {
    "byte": int, "short": int, "integer": int, "long": int, "float": float, "double": float, "boolean": bool,
    "char": str, "String": str, "any": str, "Array": list, "ArrayList": list, "Queue": list, "Stack": list,
    "Set": set, "HashMap": dict, "Hashtable": dict,
}  # fmt: skip
JAVASCRIPT_TYPES: dict[str, type] = {
    "String": str, "any": str, "integer": int, "Bigint": int, "float": float, "Boolean": bool, "array": list,
    "dict": dict,
}  # fmt: skip


def java(text: str, kind: str, items: str | None = None) -> Any:
    """The value of a Java literal.

    Args:
        kind: the literal's type, a key of `JAVA_TYPES`; Set, Hashtable, Queue and Stack literals stay texts.
        items: the type of a collection's elements; None infers the type of every element from its form.
    """
    match kind:
        case "byte" | "short" | "integer" if re.fullmatch(WHOLE, text):
            return int(text)
        case "long" if re.fullmatch(rf"{WHOLE}[lL]", text):
            return int(text[:-1])
        case "float" if re.fullmatch(rf"{SCIENTIFIC}[fF]", text):
            return float(text[:-1])
        case "double" if re.fullmatch(SCIENTIFIC, text):
            return float(text)
        case "boolean" if text in ("true", "false"):
            return text == "true"
        case "Array":
            return _java_array(text, items)
        case "ArrayList":
            return _java_list(text, items)
        case "HashMap":
            return _java_map(text)
    return text


def _java_array(text: str, items: str | None) -> Any:
    """The elements of ``new int[]{1, 2}``."""
    match = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
    if not match:
        return text
    parts = [part.strip() for part in match[1].split(",")]
    return [java(part, items) if items else _java_by_form(part) for part in parts if part]


def _java_list(text: str, items: str | None) -> Any:
    """The elements of ``new ArrayList<>(Arrays.asList(1))``, ``new ArrayList<>() {{ add(1); }}`` or an empty list."""

    def element(part: str) -> Any:
        if items in ("char", "String"):
            return part[1:-1]
        return java(part, items) if items else _java_by_form(part)

    if match := re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text):
        return [element(part.strip()) for part in match[1].split(",")]
    if match := re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL):
        return [element(part.strip()) for part in re.findall(r"add\((.+?)\)", match[1])]
    return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text


def _java_map(text: str) -> Any:
    """The entries of ``new HashMap<>() {{ put("a", 1); }}`` or ``new HashMap<>()``."""
    if match := re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.DOTALL):
        return {key: _java_by_form(value.strip()) for key, value in re.findall(r'put\("(.*?)",\s*(.*?)\)', match[1])}
    return {} if re.search(r"new\s+HashMap<.*?>\s*\(\)", text) else text


def _java_by_form(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"') and text.endswith('"'):
        return text[1:-1]
    if re.fullmatch(rf"{WHOLE}[lL]", text):
        return int(text[:-1])
    if re.fullmatch(rf"{SCIENTIFIC}[fF]", text):
        return float(text[:-1])
    return _number(text)


def javascript(text: str, kind: str, items: str | None = None) -> Any:
    """The value of a JavaScript literal.

    Args:
        kind: the literal's type, a key of `JAVASCRIPT_TYPES`.
        items: the type of an array's elements; None infers the type of every element from its form.
    """
    match kind:
        case "String":
            is_quoted = any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")
            return text[1:-1] if is_quoted else text
        case "integer" if re.fullmatch(WHOLE, text):
            return int(text)
        case "float" if re.fullmatch(DECIMAL, text):
            return float(text)
        case "Bigint" if re.fullmatch(rf"{WHOLE}n", text):
            return int(text[:-1])
        case "Boolean" if text in ("true", "false"):
            return text == "true"
        case "array":
            return _javascript_array(text.strip(), items)
        case "dict":
            return _javascript_object(text.strip())
    return text


def _javascript_array(text: str, items: str | None) -> Any:
    """The elements of ``[1, 2]``, ``new Array(1, 2)``, ``[[1], [2]]`` or ``new Array([1], [2])``."""
    if rows := _rows(text):
        inner = (row.strip() for row in re.findall(r"\[(.*?)\]", rows))
        # The first row's match begins at the outer bracket.
        return [
            [_javascript_by_form(part) for part in (row.removeprefix("[") if n == 0 else row).split(",")]
            for n, row in enumerate(inner)
        ]
    match = re.match(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)", text)
    if not match:
        return text
    inside = (match[1] if match[1] is not None else match[2]).strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    read: Callable[[str], Any] = (lambda part: javascript(part, items)) if items else _javascript_by_form
    return [read(part) for part in parts]


def _rows(text: str) -> str | None:
    r"""The beginning that ``\[\s*ROWS\]|new\s+Array\(\s*ROWS\)`` matches, ROWS being ``\[.*?\]\s*(,\s*\[.*?\]\s*)*``.

    The search takes time quadratic in the text's length. The regular expression itself takes exponential time: on
    thirty rows without a match it would run for hours.
    """
    opening = re.match(r"\[\s*|new\s+Array\(\s*", text)
    if not opening:
        return None
    last = "]" if text[0] == "[" else ")"
    ends: dict[int, int] = {}
    for start in reversed([bracket.start() for bracket in re.finditer(r"\[", text)]):
        line = re.compile(r".*").match(text, start)
        for closing in re.compile(r"\]").finditer(text, start + 1, line.end() if line else start):
            separator = _past_space(text, closing.end())
            following = _past_space(text, separator + 1)
            if text.startswith(",", separator) and following in ends:
                ends[start] = ends[following]
            elif text.startswith(last, separator):
                ends[start] = separator + 1
            if start in ends:
                break
    return text[: ends[opening.end()]] if opening.end() in ends else None


def _past_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _javascript_object(text: str) -> Any:
    """The entries of ``{a: 1, "b": [1, 2]}``."""
    if text == "{}":
        return {}
    match = re.match(r"\{(.*?)\}", text)
    if not match:
        return text
    pairs = re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", match[1])
    return {key.strip().strip("'\""): _javascript_member(value.strip()) for key, value in pairs}


def _javascript_member(text: str) -> Any:
    if text.startswith("[") and text.endswith("]"):
        return _javascript_array(text, None)
    if text.startswith("{") and text.endswith("}"):
        return _javascript_object(text)
    return _javascript_by_form(text.strip("'\""))


def _javascript_by_form(text: str) -> Any:
    text = text.strip()
    if text in ("true", "false"):
        return text == "true"
    if any(text.startswith(quote) and text.endswith(quote) for quote in "\"'"):
        return text[1:-1]
    return _number(text)


def _number(text: str) -> Any:
    """The number as Python reads it, or the text itself if it is not a number."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
