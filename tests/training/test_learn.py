"""Which turns a run learns from: the first step's loss against transformers' own, with an explicit mask."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penchant.config.run import load_config
from penchant.training.run import train

CHAT = (
    "{% for m in messages %}{{ bos_token if loop.first else '' }} {{ m.role }} {{ m.content }}"
    "{% if m.role == 'assistant' %} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant{% endif %}"
)
ROWS = [
    ["the old cat", "sees a dog", "then", "it runs to house"],
    ["big dog", "likes", "small river", "sings", "the", "bird finds a tree"],
    ["old", "the tree"],
]


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    file = tmp_path / "talk.jsonl"
    roles = ("user", "assistant")
    rows = [
        {"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(row)], "id": f"row-{n}"}
        for n, row in enumerate(ROWS)
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return file


def loss(model: Path, template: str, learn: str) -> float:
    """Mean negative log-likelihood of the assistant's tokens, each turn with its end."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    total, count = 0.0, 0
    for row in ROWS:
        ids, learn_flags = [tokenizer.bos_token_id], [False]
        for number, text in enumerate(row):
            is_answer = number % 2 == 1
            words = tokenizer(text, add_special_tokens=False)["input_ids"]
            ids += [*tokenizer("assistant" if is_answer else "user", add_special_tokens=False)["input_ids"], *words]
            flag = is_answer and (learn == "all" or number == len(row) - 1)
            learn_flags += [False] + [flag] * len(words)
            if is_answer:
                ids.append(tokenizer.eos_token_id)
                learn_flags.append(flag)
        with torch.no_grad():
            log_probs = policy(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            if learn_flags[position]:
                total, count = total - float(log_probs[position - 1, ids[position]]), count + 1
    return total / count


@pytest.mark.parametrize(("setting", "learn"), [({}, "all"), ({"learn": "all"}, "all"), ({"learn": "last"}, "last")])
def test_supervised_tuning_learns_the_turns_that_are_asked_for(
    write_config: Any,
    tiny_model: Path,
    tmp_path: Path,
    conversations: Path,
    setting: dict[str, str],
    learn: str,
    notices: pytest.LogCaptureFixture,
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT, encoding="utf-8")
    data = {"train": str(conversations), "held_out": None, "chat_template": str(template), **setting}
    file = write_config(
        objective={"name": "sft"},
        data=data,
        training={"max_steps": 1, "batch_size": 3, "learning_rate": 1e-9, "token_budget": 60},
    )
    folder = train(load_config(file))
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    [value] = [line["loss"] for line in metrics if "loss" in line]
    assert value == pytest.approx(loss(tiny_model, CHAT, learn), rel=1e-5)
    assert loss(tiny_model, CHAT, "all") != pytest.approx(loss(tiny_model, CHAT, "last"), rel=1e-3)
    notice = "earlier assistant turns learnt" if learn == "all" else "earlier assistant turns not learnt"
    assert any(f"{notice}: 2 of 3 groups (row-0, row-1)" in line for line in notices.messages)


def test_preferences_learn_the_last_turn_and_say_so(
    write_config: Any, tmp_path: Path, notices: pytest.LogCaptureFixture
) -> None:
    template, file = tmp_path / "chat.jinja", tmp_path / "pairs.jsonl"
    template.write_text(CHAT, encoding="utf-8")
    turns = [("user", "old cat"), ("assistant", "sees a dog"), ("user", "then")]
    row = {
        "prompt": [{"role": role, "content": text} for role, text in turns],
        "chosen": [{"role": "assistant", "content": "it runs"}],
        "rejected": [{"role": "assistant", "content": "it sings"}],
    }
    file.write_text(json.dumps(row), encoding="utf-8")
    data = {"train": str(file), "held_out": None, "chat_template": str(template)}
    train(load_config(write_config(data=data, training={"max_steps": 1})))
    assert any("earlier assistant turns not learnt: 1 of 1 groups" in line for line in notices.messages)
