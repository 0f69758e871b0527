"""Questions of every category, invented."""

from __future__ import annotations

import random

import pytest

from penchant.data.groups import Message
from penchant.evaluation.tool_calls import edge
from penchant.evaluation.tool_calls.calls import Function
from penchant.evaluation.tool_calls.questions import ToolQuestion

KINDS = ("integer", "float", "string", "boolean", "array", "dict")


def function(name, **types):
    properties = {
        key: {"type": kind} | ({"items": {"type": "integer"}} if kind == "array" else {}) for key, kind in types.items()
    }
    schema = {"name": name, "parameters": {"type": "dict", "properties": properties, "required": list(types)[:1]}}
    return Function.read(schema, "test")


def question(name, category, text, functions, accepted):
    return ToolQuestion(name, category, (Message(role="user", content=text),), tuple(functions), tuple(accepted))


@pytest.fixture(scope="module", autouse=True)
def _measured_here():
    """Without a process for each of a dozen measurements, which would spend its time on imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "run_in_subprocess", lambda function, *arguments: function(*arguments))
        yield


@pytest.fixture(scope="session")
def questions() -> list[ToolQuestion]:
    """Twenty-four of them, each with functions of its own."""
    found = []
    for n in range(12):
        draw = random.Random(n)
        city = draw.choice(["New York", "Paris", "Oslo"])
        weather = function(f"weather{n}.get", city="string", days="integer", hot="boolean")
        total = function(f"add_{n}", numbers="array", options="dict", rate="float")
        sunny = {f"weather{n}.get": {"city": [city, city.upper()], "days": [n + 3], "hot": ["", True]}}
        options = [{"round": [n], "unit": ["m", ""]}, ""]
        summed = {f"add_{n}": {"numbers": [[n, n + 1]], "options": options, "rate": ["", 0.5]}}
        text = f"What is the weather in {city} for {n + 3} days"
        found += [
            question(f"s{n}", "simple_python", f"{text}, number {n}?", [weather], [sunny]),
            question(f"p{n}", "parallel_multiple", f"{text}; add {n} and {n + 1}.", [weather, total], [sunny, summed])
            if n % 3
            else question(f"i{n}", "irrelevance", f"Sing number {n}.", [total], []),
        ]
    return found
