"""The right answer to a question, as calls and as what a model should write."""

from __future__ import annotations

from typing import Any

from penchant.evaluation.tool_calls.calls import Call
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import write_calls


def right_calls(question: ToolQuestion) -> list[Call]:
    """One call of each that is due, with the first value accepted of each argument that its function takes.

    What may be left out is left out, unless the function requires it.
    """
    by_name = {function.name: function for function in question.functions}
    calls = []
    for due in question.accepted or ():
        [(name, accepted)] = due.items()
        function = by_name[name]
        arguments = {}
        for key, values in accepted.items():
            some = [value for value in values if value != ""]
            needed = "" not in values or key in function.required
            if some and needed and key in function.arguments:
                arguments[key] = _first(some[0])
        calls.append(Call(name, arguments))
    return calls


def right_answer(question: ToolQuestion) -> str:
    """As it is written after the prompt; no call is ``[]``."""
    return f" {write_calls(right_calls(question))}"


def _first(value: Any) -> Any:
    """Of a dict the first value accepted for each key that may not be left out, also in lists."""
    if isinstance(value, dict):
        some = {key: [v for v in each if v != ""] if isinstance(each, list) else [each] for key, each in value.items()}
        needed = (key for key, each in value.items() if not (isinstance(each, list) and "" in each))
        return {key: _first(some[key][0]) for key in needed if some[key]}
    return [_first(each) for each in value] if isinstance(value, list) else value
