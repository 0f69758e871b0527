"""What a finished run's report leaves out, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from penchant.config.run import load_config
from penchant.training.report import write_run_report
from penchant.training.run import train


@pytest.fixture
def learned_positions(tiny_model: Path, tmp_path: Path) -> Path:
    """A GPT-2 that fails beyond its 16 positions, with the tiny model's tokenizer."""
    folder = tmp_path / "gpt2"
    shutil.copytree(tiny_model, folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(
        GPT2Config(vocab_size=25, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    ).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("sample_count", "sampled_prompts", "messages"),
    [
        (2, ["a dog", "it runs by"], []),
        (
            3,
            ["a dog", "it runs by"],
            ["2 of 3 samples (without room for evaluation.sample_tokens=12 in the context: 2 of 4 prompts)"],
        ),
        (0, [], []),
    ],
)
def test_samples_are_of_prompts_that_leave_room(
    write_config, tmp_path, monkeypatch, learned_positions, sample_count, sampled_prompts, messages, notices
):
    prompts = ("the old cat sees a big dog then", "a dog", "the old cat sees a big dog", "it runs by")
    rows = [{"prompt": prompt, "chosen": " a cat", "rejected": " dog"} for prompt in prompts]
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = write_config(
        model=str(learned_positions),
        data={"train": str(file), "held_out": str(file)},
        training={"max_steps": 1},
        evaluation={"samples": sample_count, "sample_tokens": 12},
    )
    folder, written_samples = train(load_config(short)), []
    notices.clear()
    monkeypatch.setattr(
        "penchant.training.report.write_report", lambda file, report: written_samples.append(report.samples)
    )
    write_run_report(folder)
    assert [[sample.prompt for sample in samples] for samples in written_samples] == [sampled_prompts]
    assert [line for line in notices.messages if not line.startswith(("held-out: ", "report: "))] == messages


def test_samples_name_the_prompts_that_the_template_refuses(write_config, tmp_path, tiny_model, notices):
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}{% if 'river' in m.content %}{{ raise_exception('no rivers') }}{% endif %}"
        "{{ m.content }} {% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    )
    contents = ("the old cat", "a river", "a big river", "a bird")
    rows = [
        {
            "prompt": [{"role": "user", "content": content}],
            "chosen": [{"role": "assistant", "content": "a dog runs"}],
            "rejected": [{"role": "assistant", "content": "a cat"}],
        }
        for content in contents
    ]
    file = tmp_path / "held_out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        model=str(tiny_model),
        data={"train": str(file), "held_out": str(file), "chat_template": str(template), "refused": "drop"},
        training={"max_steps": 1},
        evaluation={"samples": 4, "sample_tokens": 2},
    )
    write_run_report(train(load_config(config)))
    [note] = [line for line in notices.messages if "of 4 samples" in line]
    assert note == "2 of 4 samples (refused by the chat template or the tokenizer: 2 of 4 prompts)"
