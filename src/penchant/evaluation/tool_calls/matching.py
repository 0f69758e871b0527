"""Comparison of calls with the accepted calls.

The rules are those of the Berkeley Function Calling Leaderboard (Patil et al. 2025, section on AST evaluation),
including its accidental ones, so that scores are comparable; `benchmarks/bfcl_agreement.py` compares both checkers.

- A call must name the accepted function, pass all required arguments, and pass no argument that the function lacks.
- Types are compared as Python types: ``True`` is not an integer. An integer is accepted for a float, and a tuple for a
  list that the schema calls a tuple.
- A value of another type than the schema's is taken for a variable if the accepted values are of its type.
- Strings are compared without case, spaces and ``,./-_*^``; inside lists and dicts only at the first level.
- Parallel calls are matched in any order: every accepted call takes the first call that matches it.
- A Java or JavaScript text that is not a literal of its type stays a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penchant.evaluation.tool_calls.calls import Accepted, Argument, Call, Fault, Function, Language

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


PYTHON_TYPES: Mapping[str, type] = {
    "string": str, "any": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list,
    "dict": dict, "number": float, "object": dict,
}  # fmt: skip
"""Python's types by their names in schemas; the last two names are those of JSON Schema."""

OPTIONAL = ""
"""An argument that accepts this value may be left out."""


def match_calls(
    calls: Sequence[Call],
    functions: Sequence[Function],
    accepted: Sequence[Accepted],
    *,
    language: Language = "python",
) -> Fault | None:
    """The fault of an answer's calls; None if they are right.

    Args:
        accepted: the accepted calls, at least one.
    """
    if len(calls) != len(accepted):
        return Fault.COUNT
    by_name = {function.name: function for function in reversed(functions)}
    if len(accepted) == 1:
        [(name, values)] = accepted[0].items()
        return match_call(calls[0], by_name[name], values, language)
    left = list(calls)
    for accepted_call in accepted:
        [(name, values)] = accepted_call.items()
        fits = (n for n, call in enumerate(left) if match_call(call, by_name[name], values, language) is None)
        index = next(fits, None)
        if index is None:
            return Fault.UNMATCHED
        del left[index]
    return None


def match_call(
    call: Call, function: Function, accepted: Mapping[str, Sequence[Any]], language: Language
) -> Fault | None:
    """The fault of one call; None if it is right.

    Args:
        accepted: the accepted values by argument name.
    """
    if call.name != function.name:
        return Fault.FUNCTION
    if any(name not in call.arguments for name in function.required):
        return Fault.MISSING
    for name, value in call.arguments.items():
        if name not in function.arguments or name not in accepted:
            return Fault.UNKNOWN
        fault = _match_value(value, function.arguments[name], accepted[name], language)
        if fault is not None:
            return fault
    left_out = (name for name in accepted if name not in call.arguments)
    return Fault.LEFT_OUT if any(OPTIONAL not in accepted[name] for name in left_out) else None


def entries_as_lists(accepted: Sequence[Any], argument: Argument, language: Language) -> list[Any]:
    """The accepted values with every dict entry as a list of values; an entry that is no list becomes a list of one.

    Entries are wrapped only where the checker reads them: in dicts, and in lists whose elements are dicts.
    """
    kind, nested = _python_types(argument, language)

    def wrap_entries(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: entry if isinstance(entry, list) else [entry] for key, entry in value.items()}

    if kind is list and nested is dict:
        return [
            [wrap_entries(part) for part in alternative] if isinstance(alternative, list) else alternative
            for alternative in accepted
        ]
    return [wrap_entries(alternative) for alternative in accepted] if kind is dict else list(accepted)


def _python_types(argument: Argument, language: Language) -> tuple[type, type | None]:
    """The Python type of an argument, and that of its list's elements, or None if elements are not checked."""
    types = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}[language]
    has_elements = argument.items is not None and argument.type in ("array", "tuple", "Array", "ArrayList")
    return types.get(argument.type, str), types.get(str(argument.items), str) if has_elements else None


def _match_value(value: Any, argument: Argument, accepted: Sequence[Any], language: Language) -> Fault | None:
    kind, nested = _python_types(argument, language)
    if language == "python":
        if argument.type == "tuple" and type(value) is tuple:
            value = list(value)
        if kind is float and type(value) is int:
            try:
                value = float(value)
            except OverflowError:
                return Fault.VALUE
    elif type(value) is not str:
        return Fault.TYPE
    else:
        items = argument.items if nested is not None else None
        read: Callable[[str, str, str | None], Any] = java if language == "java" else javascript
        value = read(value, argument.type, items)
    if not _is_of_type(value, accepted, kind, nested):
        return Fault.TYPE
    # A value of another type than the schema's is a variable and must equal an accepted value exactly.
    accepted_type = _type_of(accepted)
    is_variable = type(value) is not kind or (accepted_type is not None and accepted_type is not kind)
    if is_variable or kind not in (dict, str, list):
        return None if value in accepted else Fault.VALUE
    if kind is dict:
        right = any(_is_dict(value, alternative) for alternative in accepted)
    elif kind is str:
        right = _normalize(value) in [_normalize(alternative) for alternative in accepted if type(alternative) is str]
    elif nested is dict:
        right = any(len(value) == len(parts) and all(map(_is_dict, value, parts)) for parts in map(_elements, accepted))
    else:
        right = [_normalize(part) for part in value] in [
            [_normalize(part) for part in _elements(alternative)] for alternative in accepted
        ]
    return None if right else Fault.VALUE


def _is_of_type(value: Any, accepted: Sequence[Any], kind: type, nested: type | None) -> bool:
    value_type: type = type(value)
    if value_type is not kind:
        return _type_of(accepted) is value_type
    if nested is None:
        return True
    # One accepted list suffices whose elements' type, or the schema's, all elements of the value have.
    return any(
        type(alternative) is not list or all(type(part) in (nested, _type_of(alternative)) for part in value)
        for alternative in accepted
    )


def _type_of(accepted: Sequence[Any]) -> type | None:
    """The type of the first accepted value; None if the argument can only be left out."""
    return next((type(value) for value in accepted if value != OPTIONAL), None)


def _is_dict(value: Any, accepted: Any) -> bool:
    """Whether every entry of a dict is accepted for its key and no required key is missing."""
    if type(value) is not dict or type(accepted) is not dict:
        return False
    for key, entry in value.items():
        if key not in accepted or _normalize(entry) not in [
            _normalize(alternative) for alternative in _elements(accepted[key])
        ]:
            return False
    return all(key in value or OPTIONAL in _elements(alternatives) for key, alternatives in accepted.items())


def _elements(value: Any) -> Sequence[Any]:
    """The elements of a list or the characters of a text; for any other value, a list of it alone."""
    return value if isinstance(value, list | str) else [value]


def _normalize(value: Any) -> Any:
    """A text without case, spaces and ``,./-_*^``, with double quotes; any other value as it is."""
    if type(value) is not str:
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
