"""Tests of the committed example and the script that makes its files, on invented dialogues and tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from penchant.config.run import load_section
from penchant.evaluation.tool_calls.questions import read_bfcl, write_bfcl
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.pipeline import tool_calling

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"


def dialogue(turns, name="tip.compute", arguments=("bill", "share", "to")):
    properties = {key: {"type": "string"} for key in arguments}
    tools = [{"name": name, "parameters": {"type": "object", "properties": properties, "required": []}}]
    conversation = [{"from": speaker, "value": text} for speaker, text in turns]
    return {"tools": json.dumps(tools if name else []), "conversations": conversation}


def call(**arguments):
    return ("function_call", json.dumps({"name": "tip.compute", "arguments": arguments}))


@pytest.fixture(scope="module")
def files(tmp_path_factory, questions):
    folder = tmp_path_factory.mktemp("example")
    data = folder / "data"
    write_bfcl(questions, data / "bfcl")
    rows = [
        dialogue(
            [("human", "Of $2,000, 15%, to Ann1?"), call(bill=2000, share=0.15, to="Ann1"), ("observation", "{}")]
        ),
        # No turn holds the bill; an earlier turn holds it; the call has an argument that the function does not take.
        dialogue([("human", "My tip?"), call(bill=7)]),
        dialogue([("human", "A bill of 8."), ("gpt", "And the share?"), ("human", "9."), call(bill=8, share=9)]),
        dialogue([("human", "Of 3 in Oslo?"), call(bill=3, city="Oslo")]),
        dialogue([("human", "Of 4?"), ("gpt", "To whom?")]),
        dialogue([("human", "Hello, you there, how is the weather"), ("gpt", "Very fine, thank you all")], name=""),
    ]
    for name, content in (("glaive_toolcall/glaive_toolcall_en_demo", rows), ("alfworld_react/alfworld", TASKS)):
        file = data / f"{name}.json"
        file.parent.mkdir()
        file.write_text(json.dumps(content))
    script = [sys.executable, str(EXAMPLES / "agents.py"), str(data), str(folder / "files")]
    subprocess.run(script, check=True)
    return folder


TASKS = {"put_0": "You see a desk.\n> think: A desk.\nOK.\n> go to desk 1\nYou see a pen 1.\n> take pen 1"}


def test_a_dialogue_whose_first_turn_holds_all_values_is_a_question(files):
    questions = read_bfcl(files / "files" / "questions")[0]
    [question] = [question for question in questions if question.category == "glaive"]
    assert question.id == "glaive_0"
    assert question.text == "Of $2,000, 15%, to Ann1?"
    assert question.accepted == ({"tip.compute": {"bill": [2000], "share": [0.15], "to": ["Ann1"]}},)


def test_the_steps_of_trajectories(files):
    steps = [json.loads(line) for line in (files / "files" / "steps.jsonl").read_text().splitlines()]
    assert [(step["prompt"], step["completion"]) for step in steps] == [
        ("You see a desk.\n> think: A desk.\nOK.\n>", " go to desk 1"),
        ("You see a desk.\n> think: A desk.\nOK.\n> go to desk 1\nYou see a pen 1.\n>", " take pen 1"),
    ]


@pytest.mark.slow
def test_the_example_runs(files, tmp_path, monkeypatch):
    monkeypatch.chdir(files)
    config = load_section(ToolCallingConfig, EXAMPLES / "tool_calling.yaml", [f"output={tmp_path / 'out'}"])
    values = config.model_dump()
    values["new_model"] |= {"vocabulary": 320, "hidden": 32, "layers": 1, "heads": 2}
    for section in (values["new_model"], *values["steps"].values()):
        section["training"] |= {"max_steps": 1, "batch_size": 4}
    values["steps"]["rl"]["sampling"] |= {"samples": 2, "max_new_tokens": 2}
    result = tool_calling(ToolCallingConfig(**values | {"variants": 1, "answer_tokens": 2, "timed": 1}))
    assert set(result["evaluation"]["models"]) == {"base", "sft", "lora_sft", "dpo", "rl", "hybrid"}
    assert result["data"]["questions"]["train"]
    assert (tmp_path / "out" / "report.html").exists()
