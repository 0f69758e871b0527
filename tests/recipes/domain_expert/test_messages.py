"""Tests that data in messages are measured and routed by their contents, without their roles."""

from __future__ import annotations

import asyncio
import json
import math
import random
from types import SimpleNamespace

import httpx2
import pytest

from penchant.config.section import validated
from penchant.data.groups import Message
from penchant.errors import DataError
from penchant.evaluation.statistics import difference_of_shares
from penchant.recipes.domain_expert import evaluation, routing
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.routing import PromptSet, content
from penchant.serving.access import Limits
from penchant.serving.app import build_app
from penchant.serving.router import load_router

SEPARATORS = ("\u2028", "\u2029", "\x85")
"""Unicode's line separators, which JSON does not escape in strings."""


def test_the_content_of_texts_and_messages():
    turns = (Message(role="system", content="S"), Message(role="user", content="U"), Message(role="tool", content="T"))
    assert (content("words"), content("words", "user")) == ("words", "words")
    assert (content(turns), content(turns, "user"), content(turns, "assistant")) == ("T", "U", "")


def turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


@pytest.fixture
def data_folder(tmp_path):
    """A folder with six requests of each expert, after a system message and an earlier turn."""
    (tmp_path / "data").mkdir()
    for name in ("tasks", "preferences"):
        lines = []
        for n in range(6):
            earlier_turns = [turn("system", "Be brief."), turn("user", "Hello"), turn("assistant", "Hello.")]
            row = {
                "prompt": [*earlier_turns, turn("user", f"{name} {n} + 2?")],
                "chosen": [turn("assistant", f"{n + 2}")],
            }
            lines.append(json.dumps(row | {"rejected": [turn("assistant", "no")]}) + "\n")
        for part in ("train", "test"):
            (tmp_path / "data" / f"{name}_{part}.jsonl").write_text("".join(lines))
        validation_lines = "".join(lines).replace("+ 2?", "+ 5?")
        (tmp_path / "data" / f"{name}_validation.jsonl").write_text(validation_lines)
    return tmp_path


def test_right_answers_match_exactly(data_folder):
    prompts = PromptSet.from_file(data_folder / "data" / "tasks_test.jsonl", 4)
    assert prompts.references == ("2", "3", "4", "5")
    values = prompts.values("tasks", ["2", "3", "4", "wrong"])
    assert values["tasks_exact"] == values["tasks_rouge_l"] == [1.0, 1.0, 1.0, 0.0]


class RecordingExperts:
    """Experts that record the prompts of the server."""

    names = ("conversation", "structured")

    def __init__(self):
        self.questions = []

    def get(self, name):
        return self

    def log_probs(self, groups):
        self.questions += [group.prompt for group in groups]
        raise DataError("the prompts are recorded")


@pytest.mark.parametrize("as_chat", ["auto", "true"])
def test_the_stage_and_the_server_ask_the_router_alike(data_folder, monkeypatch, as_chat):
    files = dict.fromkeys(("instructions", "tasks", "preferences", "base", "instruct", "output"), "unread")
    values = {**files, "texts": {"file": "unread"}, "router": {"shots": 2, "taught": 9}, "answers": 4}
    values["data"] = {"as_chat": as_chat}
    config = validated(DomainExpertConfig, values, "test")
    prompts = []

    def random_log_probs(model, groups, token_budget, reading):
        prompts.extend(group.prompt for group in groups)
        draw = random.Random(0)
        return [SimpleNamespace(log_probs=(draw.random(), draw.random())) for _ in groups]

    monkeypatch.setattr(routing, "compute_log_probs", random_log_probs)
    (data_folder / "router").mkdir()
    routing.route(config, data_folder / "router")
    server = RecordingExperts()

    async def ask_all():
        transport = httpx2.ASGITransport(app=build_app(server, load_router(data_folder / "router"), Limits()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            for name in ("preferences", "tasks"):
                for line in (data_folder / "data" / f"{name}_test.jsonl").read_text().splitlines()[:4]:
                    messages = json.loads(line)["prompt"]
                    await client.post("/v1/chat/completions", json={"model": "router", "messages": messages})

    asyncio.run(ask_all())
    assert len(server.questions) == 8
    # Before the test requests, three empty requests, and those of validation, which decide the threshold.
    assert all(content(prompt).endswith(" + 5?\nKind:") for prompt in prompts[3:11])
    assert prompts[11:] == server.questions
    assert isinstance(prompts[11], str) == (as_chat == "auto")
    assert content(server.questions[0]).endswith("\n\nRequest: preferences 0 + 2?\nKind:")
    routing_prompts = {content(group.prompt) for group in routing.routing_groups(config, data_folder / "data")}
    assert len(routing_prompts) == 8
    assert {prompt.rsplit("Request: ")[-1] for prompt in routing_prompts} <= {
        f"{name} {n} + 2?\nKind:" for name in ("preferences", "tasks") for n in range(6)
    }


def test_the_gain_of_the_experts_over_one_model():
    """Prompts without a value of either are left out; shares have the interval of shares."""
    routed = {"exact": [1.0, 1.0, 0.0, 1.0], "rating": [5.0, math.nan, 2.0, 4.0]}
    single = {"exact": [0.0, 1.0, 0.0, 1.0], "rating": [1.0, 3.0, math.nan, 3.5], "other": [0.0] * 4}
    gains = evaluation._gains(routed, single)
    assert {key: (value.value, value.n) for key, value in gains.items()} == {"exact": (0.25, 4), "rating": (2.25, 2)}
    assert gains["exact"] == difference_of_shares(routed["exact"], single["exact"], range(4))
    assert (gains["rating"].low, gains["rating"].high) == (0.5, 4.0)


@pytest.mark.parametrize("separator", [" ", *SEPARATORS])
def test_the_metrics_of_routed_answers(data_folder, separator):
    prompt_sets = {
        name: PromptSet.from_file(data_folder / "data" / f"{name}_test.jsonl", 4) for name in ("tasks", "preferences")
    }
    decisions = [
        {"request": f"{name} {n} + 2?", "expert": "structured"} for name in ("tasks", "preferences") for n in range(4)
    ]
    decisions.append({"request": f"Nobody's{separator}words.", "expert": "conversation"})
    (data_folder / "router").mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in decisions)
    (data_folder / "router" / "decisions.jsonl").write_text(lines, encoding="utf-8")
    answers = {
        "structured": {"tasks": ["2", "3", "4", "no"], "preferences": ["2"] * 4},
        "conversation": {"tasks": ["no"] * 4, "preferences": ["no"] * 4},
    }
    (data_folder / "evaluation").mkdir()
    routed = evaluation._routed_answers(data_folder / "evaluation", prompt_sets, answers)
    assert routed == answers["structured"]
    values = evaluation._values(prompt_sets, routed, routing.WORDS_ONLY)
    assert values["tasks_exact"] == [1.0, 1.0, 1.0, 0.0]
    assert values["preferences_exact"] == [1.0, 0.0, 0.0, 0.0]
