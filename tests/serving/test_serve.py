"""The server as a process, with requests from the official client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from httpx2 import HTTPError
from openai import APIConnectionError, APIStatusError, AsyncOpenAI, NotFoundError, OpenAI

from penchant.cli.main import run
from penchant.data.groups import PreferenceGroup
from penchant.evaluation.answering import Sampling, answer
from penchant.serving.experts import Experts
from penchant.serving.router import Router


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    command = [sys.executable, "-m", "penchant", "serve", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 90
    try:
        while True:
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5) as reply:
                    assert json.load(reply) == {"status": "ok"}
                break
            except OSError:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield address, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def two(tmp_path_factory, tiny_model):
    """A folder as written by the domain-expert recipe: two experts with the same model, and a router."""
    folder = tmp_path_factory.mktemp("experts")
    for name in ("conversation", "structured"):
        (folder / name).mkdir()
        (folder / name / "run").symlink_to(tiny_model)
    names = {"conversation": "question", "structured": "task"}
    Router(names, "structured", (("why", "conversation"), ("sort", "structured")), "conversation", 0.0).save(
        folder / "router"
    )
    return folder


@pytest.fixture(scope="module")
def address(two):
    with serving(str(two), "--max-tokens", "48") as (server_address, _):
        yield server_address


@pytest.fixture
def client(address):
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def raw(address: str, body: bytes) -> tuple[int, dict]:
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["conversation", "structured", "router"]
    assert client.models.retrieve("router").id == "router"
    with pytest.raises(NotFoundError):
        client.models.retrieve("nobody")


def test_greedy_answers_equal_those_of_generate(client, tiny_model):
    for text in ("Once upon a time", "A b"):
        expected = answer(str(tiny_model), [text], Sampling(temperature=0.0, max_new_tokens=12)).responses[0][0]
        completion = client.chat.completions.create(
            model="conversation", messages=user(text), temperature=0, max_tokens=12
        )
        assert completion.choices[0].message.content == expected
        assert completion.choices[0].finish_reason in ("length", "stop")
        assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
        assert completion.usage.completion_tokens <= 12


def test_the_chunks_of_a_stream_add_up_to_the_answer(client):
    request = {"model": "structured", "messages": user("Tell me"), "seed": 5, "max_tokens": 20}
    whole = client.chat.completions.create(**request)
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"


def test_the_seed_decides_the_answer(client):
    def answer(seed):
        request = {"model": "conversation", "messages": user("Go"), "max_tokens": 16, "seed": seed}
        return client.chat.completions.create(**request).choices[0].message.content

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_a_stop_sequence(client):
    request = {"model": "conversation", "messages": user("Go on"), "temperature": 0, "max_tokens": 24}
    text = client.chat.completions.create(**request).choices[0].message.content
    assert len(text) > 4
    choice = client.chat.completions.create(**request, stop=[text[3:5]]).choices[0]
    assert choice.message.content == text[: text.index(text[3:5])]
    assert choice.finish_reason == "stop"


def test_the_response_names_the_routers_choice(client, two):
    from penchant.serving.router import load_router

    completion = client.chat.completions.create(model="router", messages=user("why is it so"), max_tokens=2)
    router, experts = load_router(two / "router"), Experts({"structured": str(two / "structured" / "run")})
    expected = router.decide(experts.get("structured").log_probs([router.question("why is it so")])[0])
    router_fields = completion.model_extra["penchant"]
    assert router_fields["expert"] == completion.model == expected.expert
    assert router_fields["confidence"] == pytest.approx(expected.confidence, rel=1e-5)


@pytest.mark.slow
def test_a_hundred_streams_at_once(address):
    """No answer is lost, and each equals the answer alone."""
    texts = [f"Number {n}" for n in range(100)]

    async def ask(client: AsyncOpenAI, text: str) -> tuple[str, str | None]:
        request = {"model": "conversation", "messages": user(text), "max_tokens": 24, "temperature": 0}
        words, reason = "", None
        async for chunk in await client.chat.completions.create(**request, stream=True):
            words += chunk.choices[0].delta.content or ""
            reason = chunk.choices[0].finish_reason or reason
        return words, reason

    async def run_all_streams() -> list[tuple[str, str | None]]:
        async with AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(ask(client, text) for text in texts))

    answers = asyncio.run(run_all_streams())
    assert len(answers) == 100
    assert all(reason in ("stop", "length") for _, reason in answers)
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    for number in (0, 41, 99):
        body = {"model": "conversation", "messages": user(texts[number]), "max_tokens": 24, "temperature": 0}
        assert answers[number][0] == client.chat.completions.create(**body).choices[0].message.content


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": "conversation"}', 400, "messages"),
        (b'{"model": "conversation", "messages": []}', 400, "messages"),
        (b'{"model": "nobody", "messages": [{"role": "user", "content": "a"}]}', 404, "model"),
        (b'{"model": "conversation", "messages": [{"role": "king", "content": "a"}]}', 400, "messages.0.role"),
        (b'{"model": "conversation", "messages": [{"role": "user", "content": 1}]}', 400, "messages.0.content"),
        (b'{"model": "conversation", "messages": [{"role": "user", "content": "a"}], "n": 0}', 400, "n"),
        (b'{"model": "conversation", "messages": [{"role": "user", "content": "a"}], "tools": 3}', 400, "tools"),
        (b'{"model": "conversation", "messages": [{"role": "user", "content": "a"}], "top_p": 7}', 400, "top_p"),
        (b'{"model": "conversation", "messages": [{"role": "user", "content": "a"}], "stop": ""}', 400, "stop"),
        (
            b'{"model": "conversation", "messages": [{"role": "user", "content": "a"}], "max_tokens": 49}',
            400,
            "max_tokens",
        ),
    ],
)
def test_malformed_requests(address, body, status, param):
    response_status, response = raw(address, body)
    assert response_status == status
    assert set(response) == {"error"}
    assert set(response["error"]) == {"message", "type", "param", "code"}
    assert response["error"]["type"] == "invalid_request_error"
    assert response["error"]["message"]
    if param is not None:
        assert response["error"]["param"] == param


def test_too_long_for_the_model(client):
    with pytest.raises(APIStatusError) as error:
        client.chat.completions.create(model="conversation", messages=user("word " * 5000), max_tokens=2)
    assert (error.value.status_code, error.value.code) == (400, "context_length_exceeded")


def test_an_unknown_path_is_404(address):
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{address}/v2/other", timeout=10)
    assert error.value.code == 404
    assert json.load(error.value)["error"]["type"] == "invalid_request_error"


def metrics(address: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith("penchant_")]
        return {name: int(value) for name, value in map(str.split, lines)}


def test_a_disconnected_client_stops_its_answer(address, client):
    start_metrics = metrics(address)
    stream = client.chat.completions.create(model="conversation", messages=user("Go"), max_tokens=48, stream=True)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        current_metrics = metrics(address)
        names = ("cancelled", "answered", "failed")
        differences = [
            current_metrics[f"penchant_{name}_total"] - start_metrics[f"penchant_{name}_total"] for name in names
        ]
        if sum(differences):
            break
        time.sleep(0.05)
    assert (differences[0] + differences[1], differences[2]) == (1, 0)
    assert current_metrics["penchant_waiting"] == 0


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.slow
def test_a_server_killed_while_streaming_leaves_no_process(tiny_model):
    with serving(f"one={tiny_model}") as (address, process):
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        # Far more than connections hold that nobody reads: the answer cannot have ended before the server is killed.
        settings = {"max_tokens": 400, "n": 100, "logprobs": True, "top_logprobs": 20}
        stream = client.chat.completions.create(model="one", messages=user("Go"), **settings, stream=True)
        next(iter(stream))
        assert _children(process.pid) == []
        process.send_signal(signal.SIGKILL)
        assert process.wait(10) == -signal.SIGKILL
        with pytest.raises((APIConnectionError, HTTPError)):
            list(stream)
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(f"{address}/health", timeout=5)


@pytest.mark.slow
def test_a_stopping_server_completes_running_answers(tiny_model):
    with serving(f"one={tiny_model}") as (address, process):
        client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = iter(
            client.chat.completions.create(model="one", messages=user("Go"), max_tokens=60, temperature=0, stream=True)
        )
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].choices[0].finish_reason in ("stop", "length")
        assert process.wait(30) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_limits(tiny_model):
    with serving(f"one={tiny_model}", "--batch", "1", "--waiting", "1", "--timeout-s", "0.05") as (address, _):
        body = json.dumps({"model": "one", "messages": user("Go"), "max_tokens": 500, "temperature": 0}).encode()
        responses: list[tuple[int, dict]] = []
        threads = [threading.Thread(target=lambda: responses.append(raw(address, body))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = {status: response["error"]["code"] for status, response in responses}
        assert codes.keys() <= {503, 504}
        assert codes[504] == "timeout"
        assert codes.get(503, "overloaded") == "overloaded"


def test_adapters_share_their_base(tiny_model, tmp_path):
    """Two LoRA experts on one copy of the base answer as each alone."""
    import torch
    from peft import LoraConfig, get_peft_model

    from penchant.models.loading import load_model, load_tokenizer

    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        model = get_peft_model(load_model(str(tiny_model)), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(parameter, std=0.5)
        model.peft_config["default"].base_model_name_or_path = str(tiny_model)
        model.save_pretrained(tmp_path / name)
        load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / name)
    folders = {name: str(tmp_path / name) for name in ("a", "b")}
    together = Experts(folders)
    assert together.peek("a").model is together.peek("b").model
    group = PreferenceGroup("Once", (" upon", " never"))
    log_probs = {name: together.get(name).log_probs([group])[0] for name in ("a", "b", "a")}
    for name, folder in folders.items():
        alone = Experts({name: folder}).get(name).log_probs([group])[0]
        assert log_probs[name] == pytest.approx(alone, abs=1e-4)
    assert log_probs["a"] != pytest.approx(log_probs["b"], abs=1e-3)


def test_mistakes_exit_with_2(tmp_path, tiny_model, capsys):
    assert run(["serve"]) == 2
    assert run(["serve", f"router={tiny_model}"]) == 2
    assert run(["serve", f"a={tiny_model}", f"a={tiny_model}"]) == 2
    assert run(["serve", str(tmp_path / "nowhere")]) == 2
    for seconds in ("0", "nan", "inf"):
        assert run(["serve", f"a={tiny_model}", "--timeout-s", seconds]) == 2
    with socket.socket() as used_socket:
        used_socket.bind(("127.0.0.1", 0))
        used_socket.listen()
        assert run(["serve", f"a={tiny_model}", "--port", str(used_socket.getsockname()[1])]) == 2
    error = capsys.readouterr().err
    assert "cannot listen there" in error
    assert "--timeout-s: nan is not a time-out" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_a_server_with_a_key_answers_only_clients_that_send_it(tiny_model, monkeypatch):
    """At every endpoint, by the official client; a body above the limit is refused with the key too."""
    monkeypatch.setenv("PENCHANT_API_KEY", "sk-7")
    with serving(f"one={tiny_model}", "--host", "0.0.0.0", "--max-body-bytes", "100000") as (address, _):
        client, stranger = (OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) for key in ("sk-7", "sk-8"))
        assert [model.id for model in client.models.list()] == ["one"]
        assert client.completions.create(model="one", prompt="the old", max_tokens=2, n=2).choices[1].index == 1
        with pytest.raises(APIStatusError) as error:
            client.chat.completions.create(model="one", messages=user("word " * 1_000_000))
        assert (error.value.status_code, error.value.code) == (413, "request_too_large")
        for request in (
            stranger.models.list,
            lambda: stranger.completions.create(model="one", prompt="the old", max_tokens=2),
            lambda: stranger.chat.completions.create(model="one", messages=user("Go"), max_tokens=2),
        ):
            with pytest.raises(APIStatusError) as error:
                request()
            assert (error.value.status_code, error.value.code) == (401, "invalid_api_key")
        status, response = raw(address, b"{}")
        assert (status, response["error"]["code"]) == (401, "invalid_api_key")
