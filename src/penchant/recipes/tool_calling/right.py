"""The right answer to a question, as calls and as text."""

from __future__ import annotations

from typing import Any

from penchant.evaluation.tool_calls.calls import Call
from penchant.evaluation.tool_calls.questions import ToolQuestion
from penchant.evaluation.tool_calls.reading import write_calls


def right_calls(question: ToolQuestion) -> list[Call]:
    """The accepted calls with the first accepted value of every argument; optional arguments are left out."""
    by_name = {function.name: function for function in question.functions}
    calls = []
    for accepted_call in question.accepted or ():
        [(name, accepted)] = accepted_call.items()
        function = by_name[name]
        arguments = {}
        for key, values in accepted.items():
            nonempty = [value for value in values if value != ""]
            is_needed = "" not in values or key in function.required
            if nonempty and is_needed and key in function.arguments:
                arguments[key] = _first_values(nonempty[0])
        calls.append(Call(name, arguments))
    return calls


def right_answer(question: ToolQuestion) -> str:
    """The right answer as the text after the prompt; ``[]`` without a call."""
    return f" {write_calls(right_calls(question))}"


def _first_values(value: Any) -> Any:
    """A value with only the first accepted value of every required dict entry; optional entries are left out."""
    if isinstance(value, dict):
        nonempty = {
            key: [v for v in element if v != ""] if isinstance(element, list) else [element]
            for key, element in value.items()
        }
        required_keys = (key for key, element in value.items() if not (isinstance(element, list) and "" in element))
        return {key: _first_values(nonempty[key][0]) for key in required_keys if nonempty[key]}
    return [_first_values(element) for element in value] if isinstance(value, list) else value
