"""Requests with tools, and the input of the chat template for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from transformers import AutoTokenizer

from penchant.data.messages import Context, Conversation
from penchant.errors import DataError
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts
from penchant.serving.requests import ChatRequest

TOOL = {"type": "function", "function": {"name": "cat", "parameters": {}}}
USER = {"role": "user", "content": "the old cat"}
# As the OpenAI client sends an answer back: every field, most of them null.
ANSWERED = {
    "role": "assistant",
    "content": None,
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "cat", "arguments": '{"size": 2}'}}],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a dog"}]}
WHOLE = {"model": "m", "messages": [USER, ANSWERED, RESULT], "tools": [TOOL]}


def test_calls_results_and_tools_become_a_conversation() -> None:
    tool_call = {"id": "c1", "type": "function", "function": {"name": "cat", "arguments": {"size": 2}}}
    conversation = (USER, {"role": "assistant", "tool_calls": [tool_call]}, RESULT)
    assert ChatRequest.model_validate(WHOLE).conversation == Conversation(conversation, Context(tools=(TOOL,)))
    without_tools = {**WHOLE, "tool_choice": "none", "chat_template_kwargs": {"deep": False}}
    assert ChatRequest.model_validate(without_tools).conversation == Conversation(
        conversation, Context(template_kwargs={"deep": False})
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [USER, {**ANSWERED, "tool_calls": [{"function": {"name": "cat", "arguments": "size"}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user"}]},
        {"chat_template_kwargs": {"messages": []}},
    ],
)
def test_invalid_messages_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        _ = ChatRequest.model_validate({**WHOLE, **wrong}).conversation


@pytest.mark.parametrize(
    "wrong",
    [
        {"tool_choice": "always"},
        {"tool_choice": "required", "tools": []},
        {"tool_choice": {"type": "function", "function": {"name": "dog"}}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"n": 0},
        {"n": 129},
        {"response_format": {"type": "xml"}},
        {"response_format": {"type": "json_schema"}},
    ],
)
def test_unknown_fields_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({**WHOLE, **wrong})


def test_a_named_tool_is_the_only_one_that_may_be_called() -> None:
    dog = {"type": "function", "function": {"name": "dog"}}
    request = {**WHOLE, "tools": [dog, TOOL], "tool_choice": {"type": "function", "function": {"name": "cat"}}}
    chat = ChatRequest.model_validate(request)
    assert [tool.function.name for tool in chat.offered_tools] == ["dog", "cat"]
    assert [tool.function.name for tool in chat.callable_tools] == ["cat"]


def test_the_prompt_contains_tools_and_calls(tiny_model: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }} dog {% endfor %}{% for m in messages %}"
        "{{ m.content or '' }} {% for c in m.tool_calls or [] %}{{ c.function.arguments.size }} bird {% endfor %}"
        "{% endfor %}"
    )
    experts = Experts({"m": str(tiny_model)})
    expert = experts.get("m")
    object.__setattr__(expert, "tokenizer", tokenizer)
    served = SimpleNamespace(
        names=["m"], get=lambda n: expert, peek=lambda n: expert, activate=lambda e: None, context=lambda n: 128
    )
    with TestClient(build_app(served, None, Limits())) as client:
        answer = client.post("/v1/chat/completions", json={**WHOLE, "max_tokens": 2}).json()
        bad = client.post(
            "/v1/chat/completions", json={**WHOLE, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}
        )
    # cat dog, the old cat, an unknown number and bird, a dog
    assert answer["usage"]["prompt_tokens"] == 2 + 3 + 2 + 2
    assert bad.status_code == 400
    assert "parts of type text" in bad.json()["error"]["message"]
