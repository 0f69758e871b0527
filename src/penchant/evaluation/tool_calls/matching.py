"""Calls held against those that are accepted.

The rules are those of the Berkeley Function Calling Leaderboard (Patil et al. 2025, section on AST evaluation), its
accidents included, so that scores can be compared; `benchmarks/bfcl_agreement.py` holds both checkers side by side.

- A function's name must be the one that is due; required arguments are there, and no others than it takes.
- Types count, and are Python's: ``True`` is no integer. An integer will do for a float, a tuple for a tuple's list.
- A value whose type is not the schema's is taken for a variable where the accepted values are of that type.
- Strings are compared without case, spaces and ``,./-_*^``; in lists and dicts only those at their first level.
- Calls in parallel are matched in any order: each that is due takes the first call that fits.
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
"""By the schema's name; the last two are JSON Schema's own."""

LEFT_OUT_IS_FINE = ""


def match_calls(
    calls: Sequence[Call],
    functions: Sequence[Function],
    accepted: Sequence[Accepted],
    *,
    language: Language = "python",
) -> Fault | None:
    """What is wrong with an answer's calls; None where nothing is.

    Args:
        accepted: the calls that are due, at least one.
    """
    if len(calls) != len(accepted):
        return Fault.COUNT
    by_name = {function.name: function for function in reversed(functions)}
    if len(accepted) == 1:
        [(name, values)] = accepted[0].items()
        return match_call(calls[0], by_name[name], values, language)
    left = list(calls)
    for due in accepted:
        [(name, values)] = due.items()
        fits = (n for n, call in enumerate(left) if match_call(call, by_name[name], values, language) is None)
        first = next(fits, None)
        if first is None:
            return Fault.UNMATCHED
        del left[first]
    return None


def match_call(
    call: Call, function: Function, accepted: Mapping[str, Sequence[Any]], language: Language
) -> Fault | None:
    """What is wrong with one call of a function."""
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
    return Fault.LEFT_OUT if any(LEFT_OUT_IS_FINE not in accepted[name] for name in left_out) else None


def entries_as_lists(accepted: Sequence[Any], argument: Argument, language: Language) -> list[Any]:
    """Accepted values in which each entry of a dict is a list: one that stands bare is the only value that is right.

    Only where the entries are looked at: in dicts, and in lists whose elements are dicts.
    """
    kind, nested = _kinds(argument, language)

    def listed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {key: entry if isinstance(entry, list) else [entry] for key, entry in value.items()}

    if kind is list and nested is dict:
        return [[listed(part) for part in each] if isinstance(each, list) else each for each in accepted]
    return [listed(each) for each in accepted] if kind is dict else list(accepted)


def _kinds(argument: Argument, language: Language) -> tuple[type, type | None]:
    """Python's type for an argument, and for the elements of its list where they are looked at."""
    types = {"python": PYTHON_TYPES, "java": JAVA_TYPES, "javascript": JAVASCRIPT_TYPES}[language]
    held = argument.items is not None and argument.type in ("array", "tuple", "Array", "ArrayList")
    return types.get(argument.type, str), types.get(str(argument.items), str) if held else None


def _match_value(value: Any, argument: Argument, accepted: Sequence[Any], language: Language) -> Fault | None:
    kind, nested = _kinds(argument, language)
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
    # A value of another type than the schema's is a variable: compared as it stands.
    of_accepted = _type_of(accepted)
    variable = type(value) is not kind or (of_accepted is not None and of_accepted is not kind)
    if variable or kind not in (dict, str, list):
        return None if value in accepted else Fault.VALUE
    if kind is dict:
        right = any(_is_dict(value, each) for each in accepted)
    elif kind is str:
        right = _plain(value) in [_plain(each) for each in accepted if type(each) is str]
    elif nested is dict:
        right = any(len(value) == len(parts) and all(map(_is_dict, value, parts)) for parts in map(_parts, accepted))
    else:
        right = [_plain(part) for part in value] in [[_plain(part) for part in _parts(each)] for each in accepted]
    return None if right else Fault.VALUE


def _is_of_type(value: Any, accepted: Sequence[Any], kind: type, nested: type | None) -> bool:
    own: type = type(value)
    if own is not kind:
        return _type_of(accepted) is own
    if nested is None:
        return True
    # Elements are held against the first list whose elements' type, or the schema's, they all have.
    return any(
        type(each) is not list or all(type(part) in (nested, _type_of(each)) for part in value) for each in accepted
    )


def _type_of(accepted: Sequence[Any]) -> type | None:
    """Of the first accepted value; None where an argument can only be left out."""
    return next((type(each) for each in accepted if each != LEFT_OUT_IS_FINE), None)


def _is_dict(value: Any, accepted: Any) -> bool:
    """Every entry among those accepted for its key, and no key missing that must be there."""
    if type(value) is not dict or type(accepted) is not dict:
        return False
    for key, entry in value.items():
        if key not in accepted or _plain(entry) not in [_plain(each) for each in _parts(accepted[key])]:
            return False
    return all(key in value or LEFT_OUT_IS_FINE in _parts(each) for key, each in accepted.items())


def _parts(value: Any) -> Sequence[Any]:
    """The parts of a list or of a text; a value that has none is its own."""
    return value if isinstance(value, list | str) else [value]


def _plain(value: Any) -> Any:
    if type(value) is not str:
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')
