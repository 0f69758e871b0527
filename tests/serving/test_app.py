"""The web application in this process, with a router that is slow, overloaded or failing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from penchant.errors import DataError
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.experts import Experts
from penchant.serving.router import Router
from penchant.serving.worker import Worker

ROUTER = Router(
    {"conversation": "question", "structured": "task"},
    asks="structured",
    examples=(("why", "conversation"), ("sort", "structured")),
    fallback="conversation",
    threshold=0.0,
)
ASKED = {"model": "router", "messages": [{"role": "user", "content": "the old cat"}], "temperature": 0, "max_tokens": 2}
CONVERSATION = [[0.0, -3.0]]
"""Log-probs that choose the conversation expert, so that only the router uses the other expert."""


@pytest.fixture(scope="module")
def expert(tiny_model):
    return Experts({"conversation": str(tiny_model)}).get("conversation")


@contextmanager
def served(expert, log_probs: Callable[..., list[list[float]]], **limits: float) -> Iterator[TestClient]:
    """A client of a server whose router reads these log-probs."""
    router_expert = SimpleNamespace(log_probs=log_probs)
    experts = SimpleNamespace(
        names=["conversation", "structured"],
        get=lambda name: router_expert if name == "structured" else expert,
        peek=lambda name: expert,
        activate=lambda expert: None,
        context=lambda name: 128,
    )
    # A defect is raised anew after its answer, for the log; here the answer is looked at.
    with TestClient(build_app(experts, ROUTER, Limits(**limits)), raise_server_exceptions=False) as client:
        yield client


def ask(client: TestClient) -> tuple[int, dict]:
    answer = client.post("/v1/chat/completions", json=ASKED)
    return answer.status_code, answer.json()


def error(kind: str, message: str, code: str | None, param: str | None = None) -> dict:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def waiting(client: TestClient, number: int) -> None:
    until = time.monotonic() + 10
    while f"penchant_waiting {number}\n" not in client.get("/metrics").text:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_router_calls_wait_in_the_queue(expert):
    router_started, may_continue = threading.Event(), threading.Event()

    def log_probs(groups):
        router_started.set()
        assert may_continue.wait(30)
        return CONVERSATION

    responses: list[tuple[int, dict]] = []
    with served(expert, log_probs, waiting=1) as client:
        threads = [threading.Thread(target=lambda: responses.append(ask(client))) for _ in range(2)]
        threads[0].start()
        assert router_started.wait(10)
        threads[1].start()
        waiting(client, 1)
        assert ask(client) == (503, error("server_error", "too many requests wait; try again later", "overloaded"))
        may_continue.set()
        for thread in threads:
            thread.join()
    assert [status for status, _ in responses] == [200, 200]
    assert {answer["model"] for _, answer in responses} == {"conversation"}


def test_a_slow_router_times_out(expert):
    """A request that still waits for the router times out too, and its question is not scored."""
    router_started, may_continue = threading.Event(), threading.Event()
    scored_groups = []

    def log_probs(groups):
        scored_groups.append(groups)
        router_started.set()
        assert may_continue.wait(30)
        return CONVERSATION

    responses: list[tuple[int, dict]] = []
    with served(expert, log_probs, timeout_s=0.5) as client:
        first_request = threading.Thread(target=lambda: responses.append(ask(client)))
        first_request.start()
        assert router_started.wait(10)
        began = time.monotonic()
        responses.append(ask(client))
        assert 0.4 < time.monotonic() - began < 10
        first_request.join(10)
        assert not may_continue.is_set()
        assert responses == [(504, error("timeout", "the router took too long", "timeout"))] * 2
        may_continue.set()
        waiting(client, 0)
    assert len(scored_groups) == 1


def test_the_router_shares_the_deadline_of_its_request(expert, monkeypatch):
    deadlines = []
    resubmit = Worker.resubmit
    monkeypatch.setattr(Worker, "resubmit", lambda self, job: (deadlines.append(job.deadline), resubmit(self, job)))

    def log_probs(groups):
        time.sleep(1.0)
        return CONVERSATION

    with served(expert, log_probs, timeout_s=20) as client:
        began = time.monotonic()
        assert ask(client)[0] == 200
    assert 20 <= deadlines[0] - began < 21


def test_a_failing_router_is_an_error_response(expert):
    raised = [RuntimeError("no memory"), DataError("too long"), None]

    def log_probs(groups):
        if (error := raised.pop(0)) is not None:
            raise error
        return CONVERSATION

    with served(expert, log_probs) as client:
        assert ask(client) == (500, error("server_error", "RuntimeError: no memory", None))
        expected = error("invalid_request_error", "too long", "context_length_exceeded", "messages")
        assert ask(client) == (400, expected)
        status, answer = ask(client)
    assert (status, answer["model"]) == (200, "conversation")
    assert answer["penchant"]["confidence"] == pytest.approx(0.952574, abs=1e-6)


def test_a_defect_has_the_protocols_form(expert):
    def raise_defect(messages):
        raise KeyError("role")

    with served(SimpleNamespace(prompt=raise_defect, context=128), lambda groups: CONVERSATION) as client:
        assert ask(client) == (500, error("server_error", "KeyError: 'role'", None))


def test_a_slowly_parsed_request_does_not_block_others(expert):
    """A large message is rendered and tokenized in a thread while the event loop answers other requests."""
    reading_started, may_continue = threading.Event(), threading.Event()

    def prompt(messages):
        reading_started.set()
        assert may_continue.wait(30)
        return expert.prompt(messages)

    slow = SimpleNamespace(**{name: getattr(expert, name) for name in ("model", "tokenizer", "ends", "context")})
    slow.prompt, slow.text = prompt, expert.text
    answers: list[int] = []
    with served(slow, lambda groups: CONVERSATION) as client:
        large = threading.Thread(target=lambda: answers.append(ask(client)[0]))
        large.start()
        assert reading_started.wait(10)
        health = threading.Thread(target=lambda: answers.append(client.get("/health").status_code))
        health.start()
        health.join(10)
        meanwhile = list(answers)
        may_continue.set()
        large.join(30)
    assert meanwhile == [200]
    assert answers == [200, 200]
