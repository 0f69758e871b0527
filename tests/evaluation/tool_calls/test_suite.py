"""Tests of prompt styles, shares of right answers and the verb `tool-calls`."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from penchant.cli.main import run
from penchant.data.chat import ChatRenderer
from penchant.data.groups import Message
from penchant.errors import ModelError
from penchant.evaluation.tool_calls.calls import Call, Fault, Function
from penchant.evaluation.tool_calls.category_means import macro_mean
from penchant.evaluation.tool_calls.questions import ToolQuestion, read_bfcl
from penchant.evaluation.tool_calls.styles import STYLES
from penchant.evaluation.tool_calls.suite import JudgedAnswer, ToolReport
from penchant.models.gguf.writing import export_gguf
from penchant.models.loading import load_tokenizer
from penchant.recipes.small_llama import Sizes, build_small_llama

TEMPLATE = "{% for tool in tools %}{{ tool.function | tojson }}\n{% endfor %}{{ messages[-1].content }}:"


def test_signatures(bfcl):
    both = read_bfcl(bfcl)[0][2]
    style = STYLES["signatures"]
    assert style.ask(both) == "m.add(a: integer, b?: float)\nm.sub(a?: dict)\nQ: Both.\nA:"
    assert style.read(" [m.add(a=1)]", both) == [Call("m.add", {"a": 1})]


def test_signatures_of_several_messages(bfcl):
    both = read_bfcl(bfcl)[0][2]
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "Both.")]
    question = replace(both, messages=tuple(Message(role=role, content=content) for role, content in turns))
    assert STYLES["signatures"].ask(question).splitlines()[2:] == [
        "system: Be brief.", "Q: Hi.", "A: Hello.", "Q: Both.", "A:"
    ]  # fmt: skip


def test_messages(bfcl):
    both = read_bfcl(bfcl)[0][2]
    system, user = STYLES["messages"].ask(both)
    assert [json.loads(line)["name"] for line in system["content"].splitlines()[-2:]] == ["m.add", "m.sub"]
    assert user == {"role": "user", "content": "Both."}


def rendered(question, tokenizer):
    """The text of the native prompt."""
    return ChatRenderer(tokenizer).prompt(STYLES["native"].ask(question)).text


def test_native(bfcl, tiny_model):
    both = read_bfcl(bfcl)[0][2]
    tokenizer = load_tokenizer(str(tiny_model))
    with pytest.raises(ModelError, match="no chat template"):
        STYLES["native"].check(tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}:"
    with pytest.raises(ModelError, match="ignores tools"):
        STYLES["native"].check(tokenizer)
    tokenizer.chat_template = TEMPLATE
    STYLES["native"].check(tokenizer)
    add, sub, question = rendered(both, tokenizer).splitlines()
    assert json.loads(add)["name"] == "m_add"
    parameters = json.loads(add)["parameters"]
    assert parameters["type"] == "object"
    assert parameters["properties"]["b"]["type"] == "number"
    assert json.loads(sub)["name"] == "m_sub"
    assert question == "Both.:"
    calls = STYLES["native"].read('{"name": "m_add", "arguments": {"a": 1}}', both)
    assert calls == [Call("m.add", {"a": 1})]


@pytest.mark.parametrize(
    ("category", "schema", "described", "literal"),
    [
        ("simple_java", {"type": "long", "description": "A sum."}, "A sum. A value of type long in Java", "5L"),
        ("simple_java", {"type": "ArrayList", "items": {"type": "integer"}}, "elements are of type integer",
         "new ArrayList<>(Arrays.asList(5))"),
        ("simple_java", {"type": "any"}, "A value of any type in Java", "5"),
        ("simple_javascript", {"type": "Bigint"}, "A value of type Bigint in JavaScript", "5n"),
        ("simple_javascript", {"type": "dict", "properties": {"k": {"type": "integer"}}},
         'Its entries: {"k": {"type": "integer"}}', "{k: 5}"),
    ],
)  # fmt: skip
def test_native_values_of_java_and_javascript_are_strings(tiny_model, category, schema, described, literal):
    """A value as the tool's description asks for it is accepted."""
    function_schema = {"name": "A.f", "parameters": {"type": "dict", "properties": {"x": schema}, "required": ["x"]}}
    accepted_value = {"long": 5, "ArrayList": [5], "any": "5", "Bigint": 5, "dict": {"k": [5]}}[schema["type"]]
    message = Message(role="user", content="Go.")
    functions, accepted = (Function.read(function_schema, "test"),), ({"A.f": {"x": [accepted_value]}},)
    question = ToolQuestion("q", category, (message,), functions, accepted)
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = TEMPLATE
    [tool_line, _] = rendered(question, tokenizer).splitlines()
    tool = json.loads(tool_line)
    x = tool["parameters"]["properties"]["x"]
    assert x.keys() == {"type", "description"}
    assert x["type"] == "string"
    assert described in x["description"]
    assert tool["description"] == f"It is a function of {'Java' if category == 'simple_java' else 'JavaScript'}."
    answer = json.dumps({"name": "A_f", "arguments": {"x": literal}})
    assert question.fault(STYLES["native"].read(answer, question)) is None
    assert functions[0].schema == function_schema


def test_native_types_with_null(tiny_model):
    schema = {"type": ["dict", "null"], "properties": {"k": {"type": "float"}}}
    function = Function.read({"name": "f", "parameters": {"type": "dict", "properties": {"x": schema}}}, "test")
    question = ToolQuestion("q", "simple", (Message(role="user", content="Go."),), (function,), ({"f": {}},))
    tokenizer = load_tokenizer(str(tiny_model))
    tokenizer.chat_template = TEMPLATE
    x = json.loads(rendered(question, tokenizer).splitlines()[0])["parameters"]["properties"]["x"]
    assert x == {"type": ["object", "null"], "properties": {"k": {"type": "number"}}}


def test_shares_by_category(bfcl):
    questions = read_bfcl(bfcl)[0]
    faults = [None, None, Fault.COUNT, Fault.COUNT, None, Fault.VALUE]
    report = ToolReport.from_answers([JudgedAnswer(q, "", fault) for q, fault in zip(questions, faults, strict=True)])
    assert {name: share.value for name, share in report.categories.items()} == {
        "irrelevance": 1, "live_relevance": 1, "parallel_multiple": 0, "simple_java": 0, "simple_python": 0.5
    }  # fmt: skip
    assert report.overall.value == 0.5
    assert report.macro.value == pytest.approx(2.5 / 5)
    assert report.faults == {"another number of calls": 2, "a value that is not accepted": 1}


def test_the_mean_of_categories_by_hand():
    mean = macro_mean([[True] * 10, [True, False] * 10])
    assert mean.value == 0.75
    variance = (12 / 14 * 2 / 14 / 14 + 0.25 / 24) / 4
    assert mean.value - mean.low == pytest.approx(1.959964 * math.sqrt(variance))
    assert mean.high == pytest.approx(min(1, 0.75 + 1.959964 * math.sqrt(variance)))
    assert math.isnan(macro_mean([]).value)


@pytest.mark.slow
def test_the_verb(bfcl, tiny_model, tmp_path, capsys, request):
    command = ["tool-calls", str(tiny_model), "--data", str(bfcl), "--style", "signatures", "--max-new-tokens", "4"]
    assert run([*command, "--limit", "1", "--answers", str(tmp_path / "a.jsonl"), "--json"]) == 0
    out, stderr = capsys.readouterr()
    result = json.loads(out)
    assert "multi_turn_base is left out" in stderr
    assert result["overall"]["n"] == 5
    assert result["edge"]["timed"] == 5
    assert result["edge"]["peak_bytes"] > result["edge"]["above_bytes"] > result["edge"]["weight_bytes"]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert sum(row["fault"] is None for row in rows) == result["overall"]["value"] * 5
    assert run([*command, "--category", "nothing"]) == 2
    assert "there is no category 'nothing'" in capsys.readouterr().err
    request.getfixturevalue("latency_in_this_process")
    assert run([*command, "--timed", "2", "--category", "irrelevance", "--category", "irrelevance"]) == 0
    assert "mean of categories" in capsys.readouterr().out


def test_the_verb_constrained(bfcl, tmp_path, capsys, latency_in_this_process):
    build_small_llama(tmp_path / "model", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 32, 1, 2, 512), seed=0)
    command = ["tool-calls", str(tmp_path / "model"), "--data", str(bfcl), "--style", "signatures", "--json"]
    command += ["--max-new-tokens", "8", "--answers", str(tmp_path / "a.jsonl"), "--timed", "1"]
    python = [f"--category={name}" for name in ("simple_python", "parallel_multiple", "irrelevance", "live_relevance")]
    rows = {}
    for flags in ([], ["--constrained"]):
        assert run([*command, *python, *flags]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["constrained"] == bool(flags)
        rows[bool(flags)] = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert result["cut"] == sum(not row["ended"] for row in rows[bool(flags)])
    assert all(row["answer"].lstrip().startswith("[") for row in rows[True])
    assert not any(row["answer"].lstrip().startswith("[") for row in rows[False])
    assert run([*command, "--constrained"]) == 2
    stderr = capsys.readouterr().err
    assert "j0: answers in java cannot be constrained" in stderr
    assert "--category" in stderr


@pytest.mark.slow
def test_a_gguf_file_answers_as_its_folder_does(bfcl, tmp_path, latency_in_this_process):
    build_small_llama(tmp_path / "model", ["m.add(a=1)  # the sum of 1 and 2"], Sizes(300, 32, 1, 2, 512), seed=0)
    export_gguf(str(tmp_path / "model"), tmp_path / "model.gguf", "f32")
    for name in ("model", "model.gguf"):
        command = ["tool-calls", str(tmp_path / name), "--data", str(bfcl), "--style", "signatures"]
        assert run([*command, "--max-new-tokens", "8", "--answers", str(tmp_path / f"{name}.jsonl")]) == 0
    assert (tmp_path / "model.jsonl").read_bytes() == (tmp_path / "model.gguf.jsonl").read_bytes()
    assert len((tmp_path / "model.jsonl").read_text().splitlines()) == 6
