"""A few questions in files of the leaderboard's form."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penchant.evaluation.tool_calls import latency as edge


def function(name, required=(), **types):
    properties = {key: {"type": kind} for key, kind in types.items()}
    return {
        "name": name,
        "description": "d",
        "parameters": {"type": "dict", "properties": properties, "required": list(required)},
    }


def question_row(name, text, *functions):
    return {"id": name, "question": [[{"role": "user", "content": text}]], "function": list(functions)}


@pytest.fixture
def bfcl(tmp_path) -> Path:
    """A folder with five categories, and a sixth that cannot be measured."""
    add, other = function("m.add", ["a"], a="integer", b="float"), function("m.sub", a="dict")
    both = [{"m.add": {"a": [1]}}, {"m.sub": {"a": [{"k": [1]}]}}]
    files = {
        "simple_python": (
            [question_row("s0", "Add 1.", add), question_row("s1", "Add 2.", add)],
            [[{"m.add": {"a": [1]}}], [{"m.add": {"a": [2]}}]],
        ),
        "parallel_multiple": ([question_row("p0", "Both.", add, other)], [both]),
        "simple_java": ([question_row("j0", "Add.", function("A.f", x="long"))], [[{"A.f": {"x": [5]}}]]),
        "irrelevance": ([question_row("i0", "Sing.", add)], None),
        "live_relevance": ([question_row("r0", "Add.", add)], None),
        "multi_turn_base": ([question_row("t0", "Go.", add)], None),
    }
    folder = tmp_path / "bfcl"
    (folder / "possible_answer").mkdir(parents=True)
    for category, (questions, answers) in files.items():
        file = f"BFCL_v4_{category}.json"
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in questions))
        if answers is not None:
            rows = [{"id": q["id"], "ground_truth": accepted} for q, accepted in zip(questions, answers, strict=True)]
            (folder / "possible_answer" / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def latency_in_this_process(monkeypatch) -> None:
    """Latency is measured without a subprocess, whose imports take seconds."""
    monkeypatch.setattr(edge, "run_in_subprocess", lambda function, *arguments: function(*arguments))
