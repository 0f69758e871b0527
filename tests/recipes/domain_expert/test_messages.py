"""Data in messages is measured and routed by what the messages say, without their roles."""

from __future__ import annotations

import asyncio
import json
import random
from types import SimpleNamespace

import httpx2
import pytest

from penchant.config_errors import validated
from penchant.data.groups import Message
from penchant.errors import DataError
from penchant.recipes.domain_expert import evaluation, routing
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.measures import Asked, content
from penchant.serving.app import build_app
from penchant.serving.limits import Limits
from penchant.serving.router import load_router

SEPARATORS = ("\u2028", "\u2029", "\x85")
"""Of Unicode's lines; JSON lets a string hold them as they are."""


def test_what_a_text_says():
    turns = (Message(role="system", content="S"), Message(role="user", content="U"), Message(role="tool", content="T"))
    assert (content("words"), content("words", "user")) == ("words", "words")
    assert (content(turns), content(turns, "user"), content(turns, "assistant")) == ("T", "U", "")


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.fixture
def rows(tmp_path):
    """Six requests of each expert, after a system's message and an earlier turn."""
    (tmp_path / "data").mkdir()
    for name in ("tasks", "preferences"):
        lines = []
        for n in range(6):
            before = [turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hello.")]
            row = {"prompt": [*before, turn("user", f"{name} {n} + 2?")], "chosen": [turn("assistant", f"{n + 2}")]}
            lines.append(json.dumps(row | {"rejected": [turn("assistant", "no")]}) + "\n")
        for part in ("train", "test"):
            (tmp_path / "data" / f"{name}_{part}.jsonl").write_text("".join(lines))
    return tmp_path


def test_a_perfect_answer_is_exact(rows):
    asked = Asked.of(rows / "data" / "tasks_test.jsonl", 4)
    assert asked.references == ("2", "3", "4", "5")
    measured = asked.measures("tasks", ["2", "3", "4", "wrong"])
    assert measured["tasks_exact"].value == 0.75
    assert measured["tasks_rouge_l"].value == 0.75


class Asking:
    """Stands in for experts: keeps the questions that the server puts to them."""

    names = ("conversation", "structured")

    def __init__(self):
        self.questions = []

    def get(self, name):
        return self

    def log_probs(self, groups):
        self.questions += [group.prompt for group in groups]
        raise DataError("enough is known")


def test_the_router_is_asked_what_the_server_asks(rows, monkeypatch):
    files = dict.fromkeys(("instructions", "tasks", "preferences", "base", "instruct", "output"), "unread")
    values = {**files, "texts": {"file": "unread"}, "router": {"shots": 2, "taught": 9}, "answers": 4}
    config = validated(DomainExpertConfig, values, "test")
    read = []

    def likely(model, groups, token_budget, reading):
        read.extend(group.prompt for group in groups)
        draw = random.Random(0)
        return [SimpleNamespace(log_probs=(draw.random(), draw.random())) for _ in groups]

    monkeypatch.setattr(routing, "compute_log_probs", likely)
    (rows / "router").mkdir()
    routing.route(config, rows / "router")
    server = Asking()

    async def ask_all():
        transport = httpx2.ASGITransport(app=build_app(server, load_router(rows / "router"), Limits()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            for name in ("preferences", "tasks"):
                for line in (rows / "data" / f"{name}_test.jsonl").read_text().splitlines()[:4]:
                    messages = json.loads(line)["prompt"]
                    await client.post("/v1/chat/completions", json={"model": "router", "messages": messages})

    asyncio.run(ask_all())
    assert len(server.questions) == 8
    assert read[3:] == server.questions
    assert server.questions[0].endswith("\n\nRequest: preferences 0 + 2?\nKind:")
    taught = {group.prompt for group in routing.lessons(config, rows / "data")}
    assert len(taught) == 8
    assert {prompt.rsplit("Request: ")[-1] for prompt in taught} <= {
        f"{name} {n} + 2?\nKind:" for name in ("preferences", "tasks") for n in range(6)
    }


@pytest.mark.parametrize("separator", [" ", *SEPARATORS])
def test_the_routed_answers_are_found_again(rows, separator):
    asked = {name: Asked.of(rows / "data" / f"{name}_test.jsonl", 4) for name in ("tasks", "preferences")}
    decisions = [
        {"request": f"{name} {n} + 2?", "expert": "structured"} for name in ("tasks", "preferences") for n in range(4)
    ]
    decisions.append({"request": f"Nobody's{separator}words.", "expert": "conversation"})
    (rows / "router").mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in decisions)
    (rows / "router" / "decisions.jsonl").write_text(lines, encoding="utf-8")
    said = {
        "structured": {"tasks": ["2", "3", "4", "no"], "preferences": ["2"] * 4},
        "conversation": {"tasks": ["no"] * 4, "preferences": ["no"] * 4},
    }
    (rows / "evaluation").mkdir()
    found = evaluation._routed(rows / "evaluation", asked, said, None)
    assert found["tasks_exact"]["value"] == 0.75
    assert found["preferences_exact"]["value"] == 0.25
