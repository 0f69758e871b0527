"""What a server hands over to a program that learns from its answers, and the swap of a model while it serves."""

from __future__ import annotations

import json
import queue
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

from penchant.errors import ModelError
from penchant.models.loading import load_model
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Job, Piece
from penchant.serving.worker import Worker

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"
MESSAGES = [{"role": "system", "content": "the dog"}, {"role": "user", "content": "the old cat"}]


class Notebook:
    """Learning that only writes down what it is given."""

    expert = "m"

    def __init__(self):
        self.recorded, self.skipped, self.events, self.swap = [], [], [], None

    def start(self, swap):
        self.swap = swap
        self.events.append("start")

    def stop(self):
        self.events.append("stop")

    def record(self, prompt, answer):
        self.recorded.append((prompt, answer))

    def skip(self, reason):
        self.skipped.append(reason)

    def status(self):
        return {"recorded": len(self.recorded)}


@pytest.fixture(scope="module")
def folders(tiny_model, tmp_path_factory):
    """Two random models with a chat template, whose answers often end by themselves."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("first", "second")):
        shutil.copytree(tiny_model, folder / name)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = TEMPLATE
        tokenizer.save_pretrained(folder / name)
        model = load_model(str(tiny_model))
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder / name)
    return folder


@pytest.fixture
def notebook():
    return Notebook()


@pytest.fixture
def client(folders, notebook):
    experts = Experts({"m": str(folders / "first"), "other": str(folders / "first")})
    with TestClient(build_app(experts, None, Limits(max_tokens=100), learning=notebook)) as http:
        yield http


def ask(client, **fields):
    body = {"model": "m", "messages": MESSAGES, "max_tokens": 100, "seed": 0, **fields}
    return client.post("/v1/chat/completions", json=body)


def ended_seed(client) -> int:
    """A seed at which the answer ends by itself and has text."""
    for seed in range(20):
        [choice] = ask(client, seed=seed, store=False).json()["choices"]
        if choice["finish_reason"] == "stop" and choice["message"]["content"].strip():
            return seed
    raise AssertionError


def test_whole_answers_are_recorded_once_streamed_or_not(client, notebook):
    seed = ended_seed(client)
    content = ask(client, seed=seed).json()["choices"][0]["message"]["content"]
    stream = ask(client, seed=seed, stream=True).text
    assert "[DONE]" in stream
    assert notebook.recorded == [(tuple(MESSAGES), content)] * 2
    assert client.get("/learning").json() == {"recorded": 2}


def test_a_request_opts_out_by_store(client, notebook):
    seed = ended_seed(client)
    notebook.skipped.clear()
    assert ask(client, seed=seed, store=False).status_code == 200
    assert (notebook.recorded, notebook.skipped) == ([], ["opted out"])
    ask(client, seed=seed, store=True)
    assert len(notebook.recorded) == 1


def test_store_is_true_or_false(client):
    assert ask(client, store="perhaps").status_code == 400


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"max_tokens": 1}, "cut"),
        ({"stop": "zebra"}, "constrained"),
        ({"chat_template_kwargs": {"mood": "good"}}, "constrained"),
    ],
)
def test_answers_that_nothing_is_learnt_from(client, notebook, fields, reason):
    seed = ended_seed(client)
    notebook.skipped.clear()
    assert ask(client, seed=seed, **fields).status_code == 200
    assert (notebook.recorded, notebook.skipped) == ([], [reason])


def test_other_experts_and_completions_are_no_traffic(client, notebook):
    ask(client, model="other")
    client.post("/v1/completions", json={"model": "m", "prompt": "the old cat", "max_tokens": 3})
    assert (notebook.recorded, notebook.skipped) == ([], [])


def test_every_choice_is_an_answer(client, notebook):
    ask(client, n=5)
    assert len(notebook.recorded) + len(notebook.skipped) == 5


def test_learning_starts_and_stops_with_the_server(folders, notebook):
    with TestClient(build_app(Experts({"m": str(folders / "first")}), None, Limits(), learning=notebook)):
        assert notebook.events == ["start"]
    assert notebook.events == ["start", "stop"]


def test_a_server_without_learning_has_no_such_path(folders):
    with TestClient(build_app(Experts({"m": str(folders / "first")}), None, Limits())) as http:
        assert http.get("/learning").status_code == 404


def test_a_swap_changes_answers_to_those_of_the_new_model(client, notebook, folders):
    with TestClient(build_app(Experts({"m": str(folders / "second")}), None, Limits(max_tokens=100))) as http:
        expected = ask(http, temperature=0).json()["choices"]
    first_choices = ask(client, temperature=0).json()["choices"]
    notebook.swap(str(folders / "second"))
    assert ask(client, temperature=0).json()["choices"] == expected != first_choices
    assert ask(client, model="other", temperature=0).json()["choices"] == first_choices


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(client, notebook, tmp_path):
    first_choices = ask(client, temperature=0).json()["choices"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nothing"}))
    with pytest.raises(ModelError):
        notebook.swap(str(tmp_path))
    assert ask(client, temperature=0).json()["choices"] == first_choices


def greedy(folder: Path, tokens: int) -> str:
    [text] = answers(Experts({"m": str(folder)}), 1, tokens)
    return text


def answers(experts: Experts, n: int, tokens: int, swap=None) -> list[str]:
    """Greedy answers without an end; after the first token of the first one a swap runs, before the others begin."""
    worker, texts = Worker(experts, batch=8, waiting=8), ["" for _ in range(n)]
    events: queue.Queue = queue.Queue()
    first_token, swapped = threading.Event(), threading.Event()
    object.__setattr__(experts.peek("m"), "ends", frozenset())

    def submit(index):
        def deliver(event):
            events.put((index, event))
            if index == 0 and swap is not None:
                first_token.set()
                assert swapped.wait(20)

        prompt = np.array(experts.peek("m").tokenizer("the old cat").input_ids)
        worker.submit(Job("m", prompt, tokens, 0.0, 1.0, (), 0, time.monotonic() + 30, deliver))

    submit(0)
    if swap is not None:
        assert first_token.wait(20)
        swap()
        object.__setattr__(experts.peek("m"), "ends", frozenset())
    for index in range(1, n):
        submit(index)
    swapped.set()
    writing = n
    while writing:
        index, event = events.get(timeout=30)
        if isinstance(event, Piece):
            texts[index] += event.text
        else:
            assert isinstance(event, End)
            writing -= 1
    worker.stop()
    return texts


def test_an_answer_is_completed_by_the_model_that_began_it(folders):
    first, second = greedy(folders / "first", 12), greedy(folders / "second", 12)
    assert first != second
    experts = Experts({"m": str(folders / "first")})
    swapped = answers(experts, 3, 12, lambda: experts.replace("m", str(folders / "second")))
    assert swapped == [first, second, second]
