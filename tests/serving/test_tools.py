"""Tools and JSON by the official client, in this process, with random weights that only a grammar constrains."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer

from penchant.errors import ConfigError
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts

TEMPLATE = (
    "{% for t in tools or [] %}{{ t.function | tojson }}\n{% endfor %}{% for m in messages %}{{ m.role }}: "
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}\n{% endfor %}"
)
COLOURS = {"type": "string", "enum": ["red", "blue"]}
PAINT = {
    "type": "function",
    "function": {
        "name": "paint",
        "description": "Paints it.",
        "parameters": {"type": "object", "properties": {"colour": COLOURS}, "required": ["colour"]},
    },
}
WAIT = {"type": "function", "function": {"name": "wait"}}
SCHEMA = {
    "type": "object",
    "properties": {"colour": COLOURS, "both": {"type": "array", "items": COLOURS, "maxItems": 2}},
    "required": ["colour", "both"],
    "additionalProperties": False,
}
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "paint it"}], "max_tokens": 200, "seed": 1}


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Experts:
    folder = tmp_path_factory.mktemp("small") / "model"
    text = 'paint wait red blue {"name": "paint", "arguments": {"colour": "red"}} both tool user assistant'
    build_small_llama(folder, [text], Sizes(300, 32, 1, 2, 1024), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return Experts({"m": str(folder)})


@pytest.fixture(scope="module")
def client(experts) -> Iterator[OpenAI]:
    with TestClient(build_app(experts, None, Limits())) as http:
        yield OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_a_required_call_is_answered_and_its_result_accepted(client: OpenAI, choice: object) -> None:
    request = {**REQUEST, "tools": [PAINT, WAIT], "tool_choice": choice, "parallel_tool_calls": False}
    names = set()
    for seed in range(6):
        answer = client.chat.completions.create(**{**request, "seed": seed}).choices[0]
        assert answer.finish_reason == "tool_calls"
        assert answer.message.content is None
        [call] = answer.message.tool_calls
        names.add(call.function.name)
        arguments = json.loads(call.function.arguments)
        assert arguments in ([{"colour": "red"}, {"colour": "blue"}] if call.function.name == "paint" else [{}])
    assert names == ({"paint", "wait"} if choice == "required" else {"paint"})
    messages = [
        *REQUEST["messages"],
        answer.message,
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    reply = client.chat.completions.create(**{**REQUEST, "messages": messages, "tools": [PAINT], "max_tokens": 3})
    assert reply.usage.prompt_tokens > 20


def test_a_stream_has_the_same_calls(client: OpenAI) -> None:
    request = {**REQUEST, "tools": [PAINT], "tool_choice": "required", "parallel_tool_calls": False}
    answer = client.chat.completions.create(**request).choices[0]
    chunks = [chunk.choices[0] for chunk in client.chat.completions.create(**request, stream=True)]
    [deltas] = [chunk.delta.tool_calls for chunk in chunks if chunk.delta.tool_calls]
    assert [(delta.index, delta.function) for delta in deltas] == [
        (0, deltas[0].function.model_copy(update=answer.message.tool_calls[0].function.model_dump()))
    ]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
    assert chunks[-1].finish_reason == "tool_calls"


def test_an_answer_follows_a_json_schema(client: OpenAI) -> None:
    formats = {"type": "json_schema", "json_schema": {"name": "colours", "schema": SCHEMA, "strict": True}}
    for seed in range(4):
        answer = client.chat.completions.create(
            **{**REQUEST, "seed": seed, "max_tokens": 400}, response_format=formats
        ).choices[0]
        assert answer.finish_reason == "stop"
        value = json.loads(answer.message.content)
        assert set(value) == {"colour", "both"}
        assert {value["colour"], *value["both"]} <= {"red", "blue"}


def test_an_answer_is_a_json_object(client: OpenAI) -> None:
    for seed in range(4):
        request = {**REQUEST, "seed": seed, "max_tokens": 2}
        assert not client.chat.completions.create(**request).choices[0].message.content.startswith("{")
        answer = client.chat.completions.create(**request, response_format={"type": "json_object"})
        assert answer.choices[0].message.content.startswith("{")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "cat"}}}}, None),
        ({"response_format": {"type": "json_object"}, "tools": [PAINT]}, None),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"required": ["b"]}}}],
          "tool_choice": "required"}, "tool_choice"),
    ],
)  # fmt: skip
def test_unenforceable_constraints_are_refused(client: OpenAI, fields: dict, param: str | None) -> None:
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(**REQUEST, **fields)
    assert error.value.body["param"] == (param or "response_format")


def test_without_llguidance_calls_are_parsed_but_not_enforced(client: OpenAI, experts, monkeypatch) -> None:
    def missing() -> None:
        raise ConfigError("constrained answers need llguidance", fix="python -m pip install 'penchant[constrained]'")

    monkeypatch.setattr("penchant.engine.grammars.grammar_library", missing)
    monkeypatch.setattr("penchant.serving.constraints.grammar_library", missing)
    experts.get("m").__dict__.pop("grammars", None)
    assert client.chat.completions.create(**{**REQUEST, "max_tokens": 2}, tools=[PAINT]).choices[0].message is not None
    for fields in (
        {"tools": [PAINT], "tool_choice": "required"},
        {"tools": [PAINT], "parallel_tool_calls": False},
        {"response_format": {"type": "json_object"}},
    ):
        with pytest.raises(BadRequestError, match="runs without llguidance") as error:
            client.chat.completions.create(**REQUEST, **fields)
        assert error.value.body["code"] == "unsupported_parameter"


def test_a_model_whose_template_ignores_tools_refuses_them(tiny_model) -> None:
    """Such a model reads the last message only, so its tools would be ignored."""
    with TestClient(build_app(Experts({"m": str(tiny_model)}), None, Limits())) as http:
        answer = http.post("/v1/chat/completions", json={**REQUEST, "tools": [PAINT]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tools"
