"""Corruptions of right calls, one function per kind of mistake that small models make."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from penchant.evaluation.tool_calls.calls import Call
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.recipes.tool_calling.right import right_calls

Corrupted = list[Call] | None
"""Corrupted calls; None if the corruption does not apply to the question."""


def corrupt(question: ToolQuestion, draw: random.Random) -> dict[str, list[Call]]:
    """A wrong answer by kind of corruption, without the kinds whose result does not apply or is right after all."""
    calls = right_calls(question)
    candidates = {name: change(question, list(calls), draw) for name, change in CORRUPTIONS.items()}
    return {
        name: wrong for name, wrong in candidates.items() if wrong is not None and question.fault(wrong) is not None
    }


def _wrong_function(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with one function replaced by another on offer, or by an invented one if there is no other."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    other_names = [function.name for function in question.functions if function.name != calls[n].name]
    invented = f"{calls[n].name.rsplit('.', 1)[-1]}_v2"
    calls[n] = replace(calls[n], name=draw.choice(other_names) if other_names else invented)
    return calls


def _missing_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(calls, draw, lambda arguments, name: {k: v for k, v in arguments.items() if k != name})


def _extra_argument(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with one argument too many, named like an argument of another function or by an invented name."""
    if not calls:
        return None
    n = draw.randrange(len(calls))
    called_function = next(function for function in question.functions if function.name == calls[n].name)
    names = {name for function in question.functions for name in function.arguments} - set(called_function.arguments)
    name = draw.choice(sorted(names)) if names else "verbose"
    calls[n] = Call(calls[n].name, {**calls[n].arguments, name: draw.choice([True, 1, "default"])})
    return calls


def _other_type(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(calls, draw, lambda arguments, name: {**arguments, name: _change_type(arguments[name])})


def _wrong_value(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    return _change_argument(
        calls, draw, lambda arguments, name: {**arguments, name: _similar_value(arguments[name], draw)}
    )


def _extra_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls with the last call repeated, with another value if it has arguments."""
    if not calls:
        return None
    return [*calls, *(_wrong_value(question, calls[-1:], draw) or calls[-1:])]


def _missing_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """Calls without one of them."""
    if not calls:
        return None
    del calls[draw.randrange(len(calls))]
    return calls


def _unneeded_call(question: ToolQuestion, calls: list[Call], draw: random.Random) -> Corrupted:
    """A call of a function that cannot answer the question, with words of it as required arguments."""
    if calls or question.accepted is None or not question.functions:
        return None
    function = draw.choice(question.functions)
    words = question.text.split()
    default_values: Mapping[str, Any] = {
        "integer": 1,
        "float": 1.0,
        "boolean": True,
        "array": [],
        "tuple": [],
        "dict": {},
    }
    arguments = {
        name: default_values.get(function.arguments[name].type, draw.choice(words)) for name in function.required
    }
    return [Call(function.name, arguments)]


CORRUPTIONS: Mapping[str, Callable[[ToolQuestion, list[Call], random.Random], Corrupted]] = {
    "wrong function": _wrong_function,
    "missing argument": _missing_argument,
    "extra argument": _extra_argument,
    "other type": _other_type,
    "wrong value": _wrong_value,
    "extra call": _extra_call,
    "missing call": _missing_call,
    "call where none is due": _unneeded_call,
}


def _change_argument(
    calls: Sequence[Call], draw: random.Random, change: Callable[[Mapping[str, Any], str], dict[str, Any]]
) -> Corrupted:
    """Calls with the arguments of one call changed at one random name."""
    arguments = [(n, name) for n, call in enumerate(calls) for name in call.arguments]
    if not arguments:
        return None
    n, name = draw.choice(arguments)
    new_calls = list(calls)
    new_calls[n] = Call(calls[n].name, change(calls[n].arguments, name))
    return new_calls


def _change_type(value: Any) -> Any:
    """A value of another type with the same content."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return value[0] if value else None
    return str(value)


def _similar_value(value: Any, draw: random.Random) -> Any:
    """A similar value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + draw.choice([1, -1, 10])
    if isinstance(value, str):
        words = value.split()
        return " ".join(words[:-1]) if len(words) > 1 else f"{value}s"
    if isinstance(value, list) and value:
        return value[:-1] if len(value) > 1 else [_similar_value(value[0], draw)]
    if isinstance(value, dict) and value:
        key = draw.choice(sorted(value, key=str))
        return {**value, key: _similar_value(value[key], draw)}
    return [value]
