"""Several answers, log-probs, parts of text, and completions, by the official client in this process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from fastapi.testclient import TestClient
from openai import BadRequestError, OpenAI

from penchant.models.loading import load_model, load_tokenizer
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts

PROMPT = "the old cat"
REQUEST = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8}


@pytest.fixture(scope="module")
def client(tiny_model) -> Iterator[OpenAI]:
    with TestClient(build_app(Experts({"m": str(tiny_model)}), None, Limits(max_tokens=32))) as http:
        yield OpenAI(base_url="http://testserver/v1", api_key="none", max_retries=0, http_client=http)


def test_several_answers_to_one_request(client: OpenAI) -> None:
    single = client.chat.completions.create(**REQUEST, seed=4)
    four = client.chat.completions.create(**REQUEST, seed=4, n=4, logprobs=True)
    texts = [choice.message.content for choice in four.choices]
    assert [choice.index for choice in four.choices] == [0, 1, 2, 3]
    assert texts[0] == single.choices[0].message.content
    assert len(set(texts)) == 4
    assert four.usage.prompt_tokens == single.usage.prompt_tokens
    tokens = [len(choice.logprobs.content) + (choice.finish_reason == "stop") for choice in four.choices]
    assert four.usage.completion_tokens == sum(tokens)
    assert max(tokens) == 8
    streamed, reasons = [""] * 4, {}
    for chunk in client.chat.completions.create(**REQUEST, seed=4, n=4, stream=True):
        [choice] = chunk.choices
        streamed[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    assert streamed == texts
    assert reasons == {choice.index: choice.finish_reason for choice in four.choices}


def visible_text(tokens: list[str]) -> str:
    """The text of tokens, without silent tokens."""
    return "".join(token for token in tokens if not token.startswith("<"))


def own_log_probs(folder, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """[tokens, V] log-probs of the model, by one plain forward pass."""
    with torch.no_grad():
        logits = load_model(str(folder)).eval()(torch.tensor([prompt + answer])).logits[0].double()
    return logits.log_softmax(-1)[len(prompt) - 1 : -1]


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"temperature": 1.5, "top_p": 0.9, "seed": 3}])
def test_log_probs_are_the_models_own(client: OpenAI, tiny_model, settings: dict) -> None:
    answer = client.chat.completions.create(**REQUEST, **settings, logprobs=True, top_logprobs=3).choices[0]
    tokens = answer.logprobs.content
    assert 4 <= len(tokens) <= 8
    tokenizer = load_tokenizer(str(tiny_model))
    vocabulary = tokenizer.get_vocab()
    words = [token.token.strip() for token in tokens]
    expected = own_log_probs(tiny_model, tokenizer(PROMPT).input_ids, [vocabulary[word] for word in words])
    for token, word, log_probs in zip(tokens, words, expected, strict=True):
        assert token.logprob == pytest.approx(log_probs[vocabulary[word]].item(), abs=1e-5)
        assert bytes(token.bytes).decode() == token.token
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(log_probs.topk(3).values.tolist(), abs=1e-5)
        assert token.top_logprobs[0].token.strip() == tokenizer.convert_ids_to_tokens(log_probs.argmax().item())
    assert visible_text([token.token for token in tokens]) == answer.message.content
    plain = client.chat.completions.create(**REQUEST, **settings).choices[0]
    assert plain.logprobs is None
    assert plain.message.content == answer.message.content
    chunks = client.chat.completions.create(**REQUEST, **settings, logprobs=True, top_logprobs=3, stream=True)
    streamed = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs is not None]
    assert [token for content in streamed for token in content] == tokens


def test_text_parts_equal_one_text(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "the old"}, {"type": "text", "text": "cat"}]
    answer = client.chat.completions.create(**REQUEST, temperature=0)
    completion = client.chat.completions.create(
        **{**REQUEST, "messages": [{"role": "user", "content": parts}]}, temperature=0
    )
    assert completion.choices == answer.choices
    with pytest.raises(BadRequestError, match="parts of type text"):
        client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]
        )


def test_prompts_of_completions_are_not_templated(client: OpenAI, tiny_model) -> None:
    ids = load_tokenizer(str(tiny_model))(PROMPT).input_ids
    chat = client.chat.completions.create(**REQUEST, temperature=0)
    for prompt in (PROMPT, ids, [PROMPT], [ids]):
        answer = client.completions.create(model="m", prompt=prompt, max_tokens=8, temperature=0)
        assert [choice.text for choice in answer.choices] == [chat.choices[0].message.content]
        assert answer.usage == chat.usage
        assert answer.object == "text_completion"
        assert answer.model_extra["penchant"] == {"expert": "m"}


def test_completions_of_several_prompts(client: OpenAI) -> None:
    request = {"model": "m", "prompt": [PROMPT, "a bird"], "max_tokens": 6, "n": 2, "seed": 7}
    answer = client.completions.create(**request, logprobs=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 4
    assert answer.usage.prompt_tokens == 4 + 3
    for choice in answer.choices:
        logprobs = choice.logprobs
        assert visible_text(logprobs.tokens) == choice.text
        assert logprobs.text_offset == [len("".join(logprobs.tokens[:index])) for index in range(len(logprobs.tokens))]
        assert all(len(top) == 2 for top in logprobs.top_logprobs)
    streamed = [""] * 4
    chunks = list(client.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks[:-1]:
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]
    assert chunks[-1].usage == answer.usage


def test_a_completion_ends_at_a_stop_sequence(client: OpenAI) -> None:
    request = {"model": "m", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    text = client.completions.create(**request).choices[0].text
    stop = text.split()[2]
    choice = client.completions.create(**request, stop=[stop]).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [9999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [5] * 200}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_invalid_completion_requests(client: OpenAI, fields: dict, param: str) -> None:
    with pytest.raises(BadRequestError) as error:
        client.completions.create(model="m", prompt=PROMPT, extra_body=fields)
    assert error.value.body["param"] == param
