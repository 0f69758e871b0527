"""What a comparison measures: the KL of the very tokens drawn, and numbers by place and not by the data's ids."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from penchant.comparison import run as running
from penchant.comparison.config import Measure, load_bench
from penchant.comparison.measure import DEFINITIONS, Measurement
from penchant.config.run import parse_config
from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.distributed import World
from penchant.engine.sampling import Sampling, sample
from penchant.errors import ConfigError
from penchant.evaluation.held_out import score
from penchant.evaluation.preferences import evaluate_preferences
from penchant.models.loading import load_tokenizer

WORDS = ["the", "old", "cat", "sees", "a", "big", "dog", "then"]


@pytest.fixture
def other_model(tmp_path, tiny_model) -> Path:
    """The tiny model with other weights, whose answers often end at once or say unknown words."""
    folder = tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


@pytest.fixture
def yardstick(tmp_path, tiny_model):
    """Measures on rows written to a file."""

    def over(rows: list[dict], **settings: object) -> Measurement:
        file = tmp_path / "held_out.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        values = {"model": str(tiny_model), "data": str(file), "output": "o", "objective": {"name": "sft"}}
        values["training"] = {"dtype": "float32"}  # A comparison resolves ``auto`` before it measures.
        groups = read_groups(str(file)).groups
        return Measurement(parse_config(values, "run"), groups, Measure(**settings))

    return over


def pairs(count: int, **fields: object) -> list[dict]:
    draw = np.random.default_rng(0)

    def words(number: int) -> str:
        return " ".join(draw.choice(WORDS, number))

    return [
        {"prompt": f"{words(3)} {WORDS[i % 8]}", "chosen": f" {words(4)}", "rejected": f" {words(5)}", **fields}
        for i in range(count)
    ]


def log_prob(model, prompt: list[int], response: list[int]) -> float:
    """Of these tokens and no other, by a plain forward."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *response]])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(response))


@pytest.mark.parametrize("max_new_tokens", [2, 12])
def test_kl_is_of_the_tokens_that_were_drawn(yardstick, tiny_model, other_model, max_new_tokens):
    ruler = yardstick(pairs(24), samples=24, max_new_tokens=max_new_tokens)
    result = ruler.measure(str(other_model), seed=3)
    tokenizer = load_tokenizer(str(tiny_model))
    pi, start = (AutoModelForCausalLM.from_pretrained(folder) for folder in (other_model, tiny_model))
    prompts = tokenize_prompts(ruler.prompts, tokenizer)
    drawing = Sampling(max_new_tokens=max_new_tokens, seed=3, batch_size=64)
    completions = [completion for (completion,) in sample(pi, prompts, drawing, ends=[tokenizer.eos_token_id])]
    ratios = [
        log_prob(pi, prompt.tolist(), completion.ids.tolist())
        - log_prob(start, prompt.tolist(), completion.ids.tolist())
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    assert {completion.has_end for completion in completions} == {True, False}
    assert list(result.values["kl"].values()) == pytest.approx(ratios, abs=1e-4)
    assert result.metrics["kl"] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert result.metrics["kl_error"] == pytest.approx(np.std(ratios, ddof=1) / math.sqrt(len(ratios)), abs=1e-4)


def test_an_empty_answer_counts(yardstick, tiny_model, other_model):
    """A model that ends at once is far from its start, and says nothing."""
    silent = AutoModelForCausalLM.from_pretrained(other_model)
    end = silent.config.eos_token_id
    with torch.no_grad():
        silent.lm_head.weight[end] *= 30
    silent.save_pretrained(other_model)
    result = yardstick(pairs(16), samples=16, max_new_tokens=4).measure(str(other_model), seed=0)
    assert "" in result.samples.values()
    assert len(result.values["kl"]) == 16


def test_a_tempered_sample_gives_no_kl(yardstick, other_model):
    result = yardstick(pairs(6), samples=6, max_new_tokens=4, temperature=0.5).measure(str(other_model), seed=0)
    assert "words" in result.metrics
    assert not {"kl", "kl_error"} & {*result.metrics, *result.values}


@pytest.mark.parametrize("name", ["one", "sample 0"])
def test_groups_are_told_apart_by_place(yardstick, tiny_model, other_model, name):
    ruler = yardstick(pairs(10, id=name), samples=4, max_new_tokens=4)
    result = ruler.measure(str(other_model), seed=0)
    assert list(result.values["accuracy"]) == [f"group {i}" for i in range(10)]
    assert list(result.values["kl"]) == [f"sample {i}" for i in range(4)]
    scored = score(str(other_model), ruler.held_out, World.single(), reference=str(tiny_model))
    report = evaluate_preferences(scored)
    for metric, estimate in report.metrics.items():
        if metric != "ties":
            assert result.metrics[metric] == pytest.approx(estimate.value, rel=1e-9), metric


def test_a_dropped_group_does_not_move_the_others(yardstick, other_model):
    rows = pairs(6)
    rows[2]["rejected"] = rows[2]["chosen"]
    ruler = yardstick(rows, samples=0)
    dropping = ruler.base.model_copy(update={"data": ruler.base.data.model_copy(update={"identical": "drop"})})
    result = Measurement(dropping, ruler.held_out, ruler.settings).measure(str(other_model), seed=0)
    assert list(result.values["margin"]) == [f"group {i}" for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("max_length", [None, 20])
def test_the_start_reads_cut_prompts_as_the_cells_do(yardstick, tmp_path, tiny_model, max_length):
    """A copy of the start has no log-ratio to it; the longest prompt is beyond the model's context of 128."""
    rows = pairs(6)
    rows[1]["prompt"] = "the old cat sees " * 40
    ruler = yardstick(rows, samples=0)
    cutting = {"truncation": "keep_end_of_prompt", "max_length": max_length}
    base = ruler.base.model_copy(update={"data": ruler.base.data.model_copy(update=cutting)})
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    result = Measurement(base, ruler.held_out, ruler.settings).measure(str(copy), seed=0)
    assert result.values["margin"] == {f"group {i}": 0.0 for i in range(6)}


class TestPromptsWithoutRoom:
    """The tiny model's context is 128 tokens; a prompt of n words is n and the start token."""

    ROWS = tuple(
        {"prompt": " ".join(["cat"] * n), "chosen": " the cat", "rejected": " a dog"} for n in (119, 3, 120, 5)
    )

    def test_are_left_out_and_logged(self, yardstick, tiny_model, notices):
        ruler = yardstick(self.ROWS, samples=3, max_new_tokens=8)
        ruler.open()
        words = [len(str(prompt).split()) for prompt in ruler.prompts]
        assert words == [119, 3, 5]
        reason = "with max_new_tokens=8 they are longer than the context of 128 tokens"
        assert notices.messages == [f"1 of 4 held-out prompts are not sampled from: {reason}"]
        result = ruler.measure(str(tiny_model), seed=0)
        assert list(result.samples) == ["0", "1", "2"]

    def test_so_are_those_whose_groups_are_dropped(self, yardstick, tiny_model, notices):
        ruler = yardstick(self.ROWS, samples=4, max_new_tokens=2)
        data = ruler.base.data.model_copy(update={"max_length": 20, "truncation": "drop"})
        dropping = Measurement(ruler.base.model_copy(update={"data": data}), ruler.held_out, ruler.settings)
        assert [len(str(prompt).split()) for prompt in dropping.prompts] == [3, 5]
        assert notices.messages == ["2 of 4 held-out prompts are not sampled from: their groups are dropped"]
        assert dropping.by["prompts"] != ruler.by["prompts"]
        assert list(dropping.measure(str(tiny_model), seed=0).samples) == ["0", "1"]

    def test_none_left_is_an_error_before_anything_is_trained(self, yardstick, bench, monkeypatch):
        with pytest.raises(ConfigError, match="the shortest has 4 tokens, the model's context is 128"):
            yardstick(self.ROWS, samples=2, max_new_tokens=125).open()
        assert len(yardstick(self.ROWS, samples=2, max_new_tokens=124).prompts) == 1
        yardstick(self.ROWS, samples=0, max_new_tokens=125).open()
        monkeypatch.setattr(running, "train", lambda *a, **k: pytest.fail("trained"))
        file = bench(measure={"samples": 4, "max_new_tokens": 128})
        with pytest.raises(ConfigError, match="no held-out prompt leaves room for a sample"):
            running.compare(load_bench(file), str(file))


def test_orders_are_those_of_a_direct_evaluation(yardstick, tiny_model, other_model):
    rows = [
        {"prompt": f"the {word}", "responses": [" a cat", " the dog sees", " big old dog"], "scores": [3, i % 3, 1]}
        for i, word in enumerate(WORDS)
    ]
    ruler = yardstick(rows, samples=0)
    result = ruler.measure(str(other_model), seed=0)
    report = evaluate_preferences(score(str(other_model), ruler.held_out, World.single(), reference=str(tiny_model)))
    for prefix in ("", "log_prob_", "mean_log_prob_"):
        for name in ("top1", "ndcg", "kendall_tau"):
            assert result.metrics[prefix + name] == pytest.approx(report.metrics[prefix + name].value), prefix + name
            assert prefix + name in DEFINITIONS
    assert not {"top1", "kendall_tau"} & ruler.measure(str(tiny_model), seed=0).metrics.keys()
