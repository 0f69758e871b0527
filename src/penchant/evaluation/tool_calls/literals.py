"""The values of Java's and JavaScript's literals; text that is no literal of its type stays text."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

# Python refuses to read longer ones.
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
    """A literal's value.

    Args:
        kind: a key of `JAVA_TYPES`; of those, Set, Hashtable, Queue and Stack are left as text.
        items: of a collection's elements; None reads each by its own form.
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
    """``new int[]{1, 2}``"""
    found = re.search(r"new\s+\w+\[\]\s*\{(.*?)\}", text)
    if not found:
        return text
    parts = [part.strip() for part in found[1].split(",")]
    return [java(part, items) if items else _java_by_form(part) for part in parts if part]


def _java_list(text: str, items: str | None) -> Any:
    """``new ArrayList<>(Arrays.asList(1, 2))``, ``new ArrayList<>() {{ add(1); add(2); }}`` or ``new ArrayList<>()``"""

    def element(part: str) -> Any:
        if items in ("char", "String"):
            return part[1:-1]
        return java(part, items) if items else _java_by_form(part)

    if found := re.search(r"new\s+ArrayList<\w*>\(Arrays\.asList\((.+?)\)\)", text):
        return [element(part.strip()) for part in found[1].split(",")]
    if found := re.search(r"new\s+ArrayList<\w*>\(\)\s*\{\{\s*(.+?)\s*\}\}", text, re.DOTALL):
        return [element(part.strip()) for part in re.findall(r"add\((.+?)\)", found[1])]
    return [] if re.search(r"new\s+ArrayList<\w*>\(\)", text) else text


def _java_map(text: str) -> Any:
    """``new HashMap<>() {{ put("a", 1); }}`` or ``new HashMap<>()``"""
    if found := re.search(r"new\s+HashMap<.*?>\s*\(\)\s*\{\s*\{?\s*(.*?)\s*\}?\s*\}", text, re.DOTALL):
        return {key: _java_by_form(value.strip()) for key, value in re.findall(r'put\("(.*?)",\s*(.*?)\)', found[1])}
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
    """A literal's value.

    Args:
        kind: a key of `JAVASCRIPT_TYPES`.
        items: of an array's elements; None reads each by its own form.
    """
    match kind:
        case "String":
            quoted = any(text.startswith(quote) and text.endswith(quote) for quote in "\"'")
            return text[1:-1] if quoted else text
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
    """``[1, 2]``, ``new Array(1, 2)``, ``[[1], [2]]`` or ``new Array([1], [2])``"""
    if rows := _rows(text):
        inner = (row.strip() for row in re.findall(r"\[(.*?)\]", rows))
        # The first row's match begins at the outer bracket.
        return [
            [_javascript_by_form(part) for part in (row.removeprefix("[") if n == 0 else row).split(",")]
            for n, row in enumerate(inner)
        ]
    found = re.match(r"\[(.*?)\]|\bnew\s+Array\((.*?)\)", text)
    if not found:
        return text
    inside = (found[1] if found[1] is not None else found[2]).strip()
    parts = [part.strip() for part in inside.split(",")] if inside else []
    read: Callable[[str], Any] = (lambda part: javascript(part, items)) if items else _javascript_by_form
    return [read(part) for part in parts]


def _rows(text: str) -> str | None:
    r"""The beginning that ``\[\s*ROWS\]|new\s+Array\(\s*ROWS\)`` matches, ROWS being ``\[.*?\]\s*(,\s*\[.*?\]\s*)*``.

    In steps that grow with the square of the text's length: where it has thirty rows and no match, the expression
    itself would try every way to join them, for hours.
    """
    opening = re.match(r"\[\s*|new\s+Array\(\s*", text)
    if not opening:
        return None
    last = "]" if text[0] == "[" else ")"
    ends: dict[int, int] = {}
    for start in reversed([found.start() for found in re.finditer(r"\[", text)]):
        line = re.compile(r".*").match(text, start)
        for closing in re.compile(r"\]").finditer(text, start + 1, line.end() if line else start):
            after = _past_space(text, closing.end())
            following = _past_space(text, after + 1)
            if text.startswith(",", after) and following in ends:
                ends[start] = ends[following]
            elif text.startswith(last, after):
                ends[start] = after + 1
            if start in ends:
                break
    return text[: ends[opening.end()]] if opening.end() in ends else None


def _past_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def _javascript_object(text: str) -> Any:
    """``{a: 1, "b": [1, 2]}``"""
    if text == "{}":
        return {}
    found = re.match(r"\{(.*?)\}", text)
    if not found:
        return text
    pairs = re.findall(r"([^:]+):\s*(.*?)(?:,\s*(?=[^,]+:)|$)", found[1])
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
    """As Python reads numbers; other text stays."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
