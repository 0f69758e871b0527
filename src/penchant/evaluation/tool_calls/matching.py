"""Comparison of calls with the accepted calls.

The rules are those of the Berkeley Function Calling Leaderboard (Patil et al. 2025, section on AST evaluation),
including its accidental ones, so that scores are comparable; `benchmarks/bfcl_agreement.py` compares both checkers.

- A call must name the accepted function, pass all required arguments, and pass no argument that the function lacks.
- Types are compared as Python types: ``True`` is not an integer. An integer is accepted for a float, and a tuple for a
  list that the schema calls a tuple.
- A value of another type than the schema's is taken for a variable if the accepted values are of its type.
- Strings are compared without case, spaces and ``,./-_*^``; inside lists and dicts only at the first level.
- Parallel calls are matched in any order: every accepted call takes the first call that matches it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from penchant.evaluation.tool_calls.calls import Accepted, Argument, Call, Fault, Function, Language
from penchant.evaluation.tool_calls.literals import JAVA_TYPES, JAVASCRIPT_TYPES, java, javascript

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
