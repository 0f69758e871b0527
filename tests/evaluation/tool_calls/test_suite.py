"""Ways to ask, and shares of right answers."""

from __future__ import annotations

import json
import math

import pytest

from penchant.cli import run
from penchant.engine.gguf_writing import export_gguf
from penchant.engine.loading import load_model, load_tokenizer
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Call, Fault
from penchant.evaluation.tool_calls.questions import read_bfcl
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.evaluation.tool_calls.suite import Answered, ToolReport, macro_mean, measure_edge
from penchant.recipes.small_llama import Sizes, build_small_llama

TEMPLATE = "{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}{{ messages[-1].content }}:"


def test_signatures(bfcl):
    both = read_bfcl(bfcl)[0][2]
    style = STYLES["signatures"]
    assert style.ask(both, None) == "m.add(a: integer, b?: float)\nm.sub(a?: dict)\nQ: Both.\nA:"
    assert style.read(" [m.add(a=1)]", both) == [Call("m.add", {"a": 1})]


def test_messages(bfcl):
    both = read_bfcl(bfcl)[0][2]
    system, user = STYLES["messages"].ask(both, None)
    assert [json.loads(line)["name"] for line in system["content"].splitlines()[-2:]] == ["m.add", "m.sub"]
    assert user == {"role": "user", "content": "Both."}


def test_native(bfcl, tiny_model):
    both = read_bfcl(bfcl)[0][2]
    tokenizer = load_tokenizer(str(tiny_model))
    with pytest.raises(ModelError, match="no chat template"):
        STYLES["native"].ask(both, tokenizer)
    tokenizer.chat_template = TEMPLATE
    add, sub, question = STYLES["native"].ask(both, tokenizer).splitlines()
    assert json.loads(add)["name"] == "m_add"
    parameters = json.loads(add)["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["b"]["type"] == "number"
    assert json.loads(sub)["name"] == "m_sub"
    assert question == "Both.:"
    calls = STYLES["native"].read('{"name": "m_add", "arguments": {"a": 1}}', both)
    assert calls == [Call("m.add", {"a": 1})]


def test_shares(bfcl):
    questions = read_bfcl(bfcl)[0]
    faults = [None, None, Fault.COUNT, Fault.COUNT, None, Fault.VALUE]
    report = ToolReport.of([Answered(q, "", fault) for q, fault in zip(questions, faults, strict=True)])
    assert {name: each.value for name, each in report.categories.items()} == {
        "irrelevance": 1, "live_relevance": 1, "parallel_multiple": 0, "simple_java": 0, "simple_python": 0.5
    }  # fmt: skip
    assert report.overall.value == 0.5
    assert report.macro.value == pytest.approx(2.5 / 5)
    assert report.faults == {"another number of calls": 2, "a value that is not accepted": 1}


def test_the_mean_of_categories_by_hand():
    found = macro_mean([[True] * 10, [True, False] * 10])
    assert found.value == 0.75
    variance = (12 / 14 * 2 / 14 / 14 + 0.25 / 24) / 4
    assert found.value - found.low == pytest.approx(1.959964 * math.sqrt(variance))
    assert found.high == pytest.approx(min(1, 0.75 + 1.959964 * math.sqrt(variance)))
    assert math.isnan(macro_mean([]).value)


def test_what_an_answer_costs(bfcl, tiny_model):
    model, tokenizer = load_model(str(tiny_model)), load_tokenizer(str(tiny_model))
    edge = measure_edge(model, tokenizer, read_bfcl(bfcl)[0][:3], STYLES["signatures"], max_new_tokens=4)
    assert edge.timed == 3
    assert 0 < edge.seconds[0] <= edge.seconds[1]
    distinct = {id(each): each for each in model.parameters()}.values()
    assert edge.weight_bytes >= sum(4 * each.numel() for each in distinct)
    assert edge.peak_bytes > edge.weight_bytes


def test_the_verb(bfcl, tiny_model, tmp_path, capsys):
    command = ["tool-calls", str(tiny_model), "--data", str(bfcl), "--style", "signatures", "--max-new-tokens", "4"]
    assert run([*command, "--limit", "1", "--answers", str(tmp_path / "a.jsonl"), "--json"]) == 0
    out, told = capsys.readouterr()
    found = json.loads(out)
    assert "multi_turn_base is left out" in told
    assert found["overall"]["n"] == 5
    assert found["edge"]["timed"] == 5
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert sum(row["fault"] is None for row in rows) == found["overall"]["value"] * 5
    assert run([*command, "--category", "nothing"]) == 2
    assert "there is no category 'nothing'" in capsys.readouterr().err
    assert run(command) == 0
    assert "mean of categories" in capsys.readouterr().out


def test_the_verb_constrained(bfcl, tmp_path, capsys):
    build_small_llama(tmp_path / "model", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 32, 1, 2, 512), seed=0)
    command = ["tool-calls", str(tmp_path / "model"), "--data", str(bfcl), "--style", "signatures", "--json"]
    command += ["--max-new-tokens", "8", "--answers", str(tmp_path / "a.jsonl"), "--timed", "1"]
    python = [f"--category={name}" for name in ("simple_python", "parallel_multiple", "irrelevance", "live_relevance")]
    rows = {}
    for flags in ([], ["--constrained"]):
        assert run([*command, *python, *flags]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["constrained"] == bool(flags)
        rows[bool(flags)] = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert found["cut"] == sum(not row["ended"] for row in rows[bool(flags)])
    assert all(row["answer"].lstrip().startswith("[") for row in rows[True])
    assert not any(row["answer"].lstrip().startswith("[") for row in rows[False])
    assert run([*command, "--constrained"]) == 2
    told = capsys.readouterr().err
    assert "j0: answers in java cannot be constrained" in told
    assert "--category" in told


def test_a_gguf_file_answers_as_its_folder_does(bfcl, tmp_path):
    build_small_llama(tmp_path / "model", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 32, 1, 2, 512), seed=0)
    export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "f32")
    for place in ("model", "model.gguf"):
        command = ["tool-calls", str(tmp_path / place), "--data", str(bfcl), "--style", "signatures"]
        assert run([*command, "--max-new-tokens", "8", "--answers", str(tmp_path / f"{place}.jsonl")]) == 0
    assert (tmp_path / "model.jsonl").read_bytes() == (tmp_path / "model.gguf.jsonl").read_bytes()
    assert len((tmp_path / "model.jsonl").read_text().splitlines()) == 6
