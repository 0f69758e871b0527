"""A chat loop: the official client, in this process, appends each answer and sends the conversation again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from openai import BadRequestError, OpenAI
from transformers import AutoTokenizer

from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts

TEMPLATE = "{% for m in messages %}{{ m.content or '' }} {% endfor %}"

NEUTRAL = {
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "logprobs": False,
    "n": 1,
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "service_tier": "auto",
    "store": True,
    "metadata": {"run": "a"},
    "user": "anna",
    "safety_identifier": "b",
    "prompt_cache_key": "c",
    "tools": [],
    "tool_choice": "none",
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "modalities": ["text"],
    "extra_body": {"top_k": -1, "repetition_penalty": 1.0, "audio": None, "unheard_of": None},
}
"""Parameters that client libraries send and that do not change the answer."""


@pytest.fixture(scope="module")
def client(tiny_model) -> Iterator[OpenAI]:
    experts = Experts({"m": str(tiny_model)})
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = TEMPLATE
    object.__setattr__(experts.get("m"), "tokenizer", tokenizer)
    with TestClient(build_app(experts, None, Limits(max_tokens=16))) as http:
        yield OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)


def test_an_answer_can_be_appended_to_the_conversation(client: OpenAI) -> None:
    messages: list = [{"role": "system", "content": "the house"}, {"role": "user", "content": "the old cat"}]
    words = 5
    for question in ("a dog", "a bird", "the tree"):
        answer = client.chat.completions.create(model="m", messages=messages, temperature=0, max_tokens=4)
        assert answer.usage.prompt_tokens == words
        messages.append(answer.choices[0].message)
        messages.append({"role": "user", "content": question})
        words += len(answer.choices[0].message.content.split()) + 2
    assert words > 11


def test_an_answer_as_a_dictionary_is_sent_back(client: OpenAI) -> None:
    question = [{"role": "user", "content": "the old cat"}]
    answer = client.chat.completions.create(model="m", messages=question, max_tokens=4).choices[0].message
    dumped = answer.model_dump()
    assert dumped["refusal"] is None
    full = {**dumped, "annotations": [], "tool_calls": []}
    for message in (dumped, full):
        completion = client.chat.completions.create(model="m", messages=[*question, message, *question], max_tokens=2)
        assert completion.usage.prompt_tokens > 4


def test_neutral_parameters_change_nothing(client: OpenAI) -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "the old cat"}], "seed": 3, "max_tokens": 8}
    plain = client.chat.completions.create(**request)
    neutral = client.chat.completions.create(**request, **NEUTRAL)
    assert neutral.choices[0].message == plain.choices[0].message
    assert neutral.usage == plain.usage


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 0.5),
        ("presence_penalty", -1),
        ("logit_bias", {"5": 10}),
        ("top_k", 5),
        ("repetition_penalty", 1.2),
        ("reasoning_effort", "high"),
        ("web_search_options", {}),
        ("modalities", ["text", "audio"]),
        ("unheard_of", 0),
    ],
)
def test_unsupported_parameters_are_refused_by_name(client: OpenAI, name: str, value: object) -> None:
    with pytest.raises(BadRequestError) as error:
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "the old cat"}], extra_body={name: value}
        )
    assert error.value.body["param"] == name
    assert error.value.body["code"] == "unsupported_parameter"
    assert f"'{name}' is not supported" in error.value.body["message"]
