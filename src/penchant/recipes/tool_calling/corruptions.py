"""Typed corruptions of right calls: what small models get wrong, each by itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.evaluation.tool_calls.calls import Call
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.right import right_calls

Corrupted = list[Call] | None
"""None where a question gives no occasion for it."""


def corrupt(question: ToolQuestion, draw: random.Random) -> dict[str, list[Call]]:
    """Of each kind that applies, one wrong answer; those that the scorer finds right after all are left out."""
    calls = right_calls(question)
    made = {name: change(question, list(calls), draw) for name, change in CORRUPTIONS.items()}
    return {name: wrong for name, wrong in made.items() if wrong is not None and question.fault(wrong) is not None}


def _wrong_function(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Another function that is on offer, or one that is not."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    others = [function.name for function in question.functions if function.name != calls[n].name]
    invented = f"{calls[n].name.rsplit('.', 1)[-1]}_v2"
    calls[n] = replace(calls[n], name=draw.choice(others) if others else invented)
    return calls


def _missing_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _on_argument(calls, draw, lambda arguments, name: {k: v for k, v in arguments.items() if k != name})


def _extra_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """One that the function does not take, under a name of another function or an invented one."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    own = next(function for function in question.functions if function.name == calls[n].name)
    names = {name for function in question.functions for name in function.arguments} - set(own.arguments)
    name = draw.choice(sorted(names)) if names else "verbose"
    calls[n] = Call(calls[n].name, {**calls[n].arguments, name: draw.choice([True, 1, "default"])})
    return calls


def _other_type(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _on_argument(calls, draw, lambda arguments, name: {**arguments, name: _retyped(arguments[name])})


def _wrong_value(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _on_argument(calls, draw, lambda arguments, name: {**arguments, name: _another(arguments[name], draw)})


def _extra_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """The last call again, with another value where it has one."""
    if not calls:
        return None
    return [*calls, *(_wrong_value(question, calls[-1:], draw) or calls[-1:])]


def _missing_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """One call fewer; of a single one, none."""
    if not calls:
        return None
    del calls[draw.randrange(len(calls))]
    return calls


def _call_where_none_is_due(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """A function that does not serve, with words of the question for its required arguments."""
    if calls or question.accepted is None or not question.functions:
        return None
    function = draw.choice(question.functions)
    words = question.text.split()
    fitting: Mapping[str, Any] = {"integer": 1, "float": 1.0, "boolean": True, "array": [], "tuple": [], "dict": {}}
    given = {name: fitting.get(function.arguments[name].type, draw.choice(words)) for name in function.required}
    return [Call(function.name, given)]


CORRUPTIONS: Mapping[str, Callable[[ToolQuestion, list[Call], random.Random], Corrupted]] = {
    "wrong function": _wrong_function,
    "missing argument": _missing_argument,
    "extra argument": _extra_argument,
    "other type": _other_type,
    "wrong value": _wrong_value,
    "extra call": _extra_call,
    "missing call": _missing_call,
    "call where none is due": _call_where_none_is_due,
}


def _on_argument(
    calls: Sequence[Call], draw: random.Random, change: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> Corrupted:
    places = [(n, name) for n, call in enumerate(calls) for name in call.arguments]
    if not places:
        return None
    n, name = draw.choice(places)
    changed = list(calls)
    changed[n] = Call(calls[n].name, change(calls[n].arguments, name))
    return changed


def _retyped(value: Any) -> Any:
    """The same said by another type."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return value[0] if value else None
    return str(value)


def _another(value: Any, draw: random.Random) -> Any:
    """A near value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + draw.choice([1, -1, 10])
    if isinstance(value, str):
        words = value.split()
        return " ".join(words[:-1]) if len(words) > 1 else f"{value}s"
    if isinstance(value, list) and value:
        return value[:-1] if len(value) > 1 else [_another(value[0], draw)]
    if isinstance(value, dict) and value:
        key = draw.choice(sorted(value, key=str))
        return {**value, key: _another(value[key], draw)}
    return [value]
