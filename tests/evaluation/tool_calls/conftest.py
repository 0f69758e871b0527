"""A few questions in the leaderboard's files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.evaluation.tool_calls import edge


def function(name, required=(), **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    return {
        "name": name,
        "description": "d",
        "parameters": {"type": "dict", "properties": properties, "required": list(required)},
    }


def asked(name, text, *functions):
    return {"id": name, "question": [[{"role": "user", "content": text}]], "function": list(functions)}


@pytest.fixture
def bfcl(tmp_path) -> Path:
    """Four categories, and one that cannot be measured."""
    add, other = function("m.add", ["a"], a="integer", b="float"), function("m.sub", a="dict")
    both = [{"m.add": {"a": [1]}}, {"m.sub": {"a": [{"k": [1]}]}}]
    files = {
        "simple_python": (
            [asked("s0", "Add 1.", add), asked("s1", "Add 2.", add)],
            [[{"m.add": {"a": [1]}}], [{"m.add": {"a": [2]}}]],
        ),
        "parallel_multiple": ([asked("p0", "Both.", add, other)], [both]),
        "simple_java": ([asked("j0", "Add.", function("A.f", x="long"))], [[{"A.f": {"x": [5]}}]]),
        "irrelevance": ([asked("i0", "Sing.", add)], None),
        "live_relevance": ([asked("r0", "Add.", add)], None),
        "multi_turn_base": ([asked("t0", "Go.", add)], None),
    }
    folder = tmp_path / "bfcl"
    (folder / "possible_answer").mkdir(parents=True)
    for category, (questions, answers) in files.items():
        file = f"BFCL_v4_{category}.json"
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in questions))
        if answers is not None:
            rows = [{"id": q["id"], "ground_truth": due} for q, due in zip(questions, answers, strict=True)]
            (folder / "possible_answer" / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def measured_here(monkeypatch) -> None:
    """For tests of something else than what an answer costs: a process of its own spends seconds on imports."""
    monkeypatch.setattr(edge, "alone", lambda function, *arguments: function(*arguments))
