"""Invented questions of every category."""

from __future__ import annotations

import random

import pytest

from penchant.data.groups import Message
from penchant.evaluation.tool_calls import latency as edge
from penchant.evaluation.tool_calls.calls import Function
from penchant.evaluation.tool_calls.questions import ToolQuestion

KINDS = ("integer", "float", "string", "boolean", "array", "dict")


def make_function(name, **types):
    properties = {
        key: {"type": kind} | ({"items": {"type": "integer"}} if kind == "array" else {}) for key, kind in types.items()
    }
    schema = {"name": name, "parameters": {"type": "dict", "properties": properties, "required": list(types)[:1]}}
    return Function.read(schema, "test")


def make_question(name, category, text, functions, accepted):
    return ToolQuestion(name, category, (Message(role="user", content=text),), tuple(functions), tuple(accepted))


@pytest.fixture(scope="module", autouse=True)
def _latency_in_this_process():
    """Latency is measured without subprocesses, whose imports take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edge, "run_in_subprocess", lambda function, *arguments: function(*arguments))
        yield


@pytest.fixture(scope="session")
def questions() -> list[ToolQuestion]:
    """Twenty-four questions; no two names of functions on offer are shared between different numbers."""
    questions_of_all_kinds = []
    for n in range(12):
        draw = random.Random(n)
        city = draw.choice(["New York", "Paris", "Oslo"])
        weather = make_function(f"weather{n}.get", city="string", days="integer", hot="boolean")
        total = make_function(f"add_{n}", numbers="array", options="dict", rate="float")
        sunny = {f"weather{n}.get": {"city": [city, city.upper()], "days": [n + 3], "hot": ["", True]}}
        options = [{"round": [n], "unit": ["m", ""]}, ""]
        summed = {f"add_{n}": {"numbers": [[n, n + 1]], "options": options, "rate": ["", 0.5]}}
        text = f"What is the weather in {city} for {n + 3} days"
        questions_of_all_kinds += [
            make_question(f"s{n}", "simple_python", f"{text}, number {n}?", [weather], [sunny]),
            make_question(
                f"p{n}", "parallel_multiple", f"{text}; add {n} and {n + 1}.", [weather, total], [sunny, summed]
            )
            if n % 3
            else make_question(f"i{n}", "irrelevance", f"Sing number {n}.", [total], []),
        ]
    return questions_of_all_kinds
