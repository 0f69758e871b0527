"""From a starting model to every folder it ends in: the same numbers at every station.

A run is trained, stopped half-way and resumed; then its held-out log-probs (or rewards) are read off the run's last
metrics, `penchant evaluate` or `rank`, the merged folder, transformers alone, PEFT alone, and a GGUF file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from penchant.cli import run as penchant
from penchant.config import parse_config
from penchant.data.tokenized import TokenizedGroup
from penchant.training.loop import Loop
from penchant.training.run import train

FAMILIES = ("gemma3", "gpt2", "llama-tied", "qwen3", "qwen3.5")
GGUF = {"llama-tied"}
TOLERANCE = 1e-5
Values = np.ndarray
"""[G, K] log-probs or rewards."""


class Stopped(Exception):
    """What ends a run half-way."""


@pytest.fixture
def journey(
    starting_models: dict[str, Path], pairs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, bool], Path]:
    """Trains four steps, stopped after the second and resumed; returns the run's folder."""

    def travel(family: str, method: str, lora: bool) -> Path:
        config = parse_config(
            {
                "model": str(starting_models[family]),
                "data": {"train": str(pairs[0]), "held_out": str(pairs[1])},
                "output": str(tmp_path / "run"),
                "objective": {"name": method},
                "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 3e-3, "token_budget": 256},
                "checkpoints": {"every": 2},
                "evaluation": {"samples": 0},
                **({"lora": {"rank": 2, "targets": "all-linear"}} if lora else {}),
            },
            "journey",
        )
        step = Loop.step

        def stop_at_two(loop: Loop, *arguments: Any) -> Any:
            if loop.at.step == 2:
                raise Stopped
            return step(loop, *arguments)

        monkeypatch.setattr(Loop, "step", stop_at_two)
        with pytest.raises(Stopped):
            train(config)
        monkeypatch.setattr(Loop, "step", step)
        return train(config, resume=True)

    return travel


def log_probs_of(model: Any, groups: list[TokenizedGroup]) -> Values:
    """By the model's own forward, a row a candidate: nats, summed over the response."""
    values = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
            log_probs = logits[len(group.prompt) - 1 : -1].log_softmax(-1)
            values.append(log_probs.gather(1, torch.from_numpy(response)[:, None]).sum().item())
    return np.array(values).reshape(len(groups), -1)


def rewards_of(model: Any, groups: list[TokenizedGroup]) -> Values:
    """By a sequence classifier's own forward, all rows of a group in one padded batch."""
    values = []
    for group in groups:
        rows = [[*group.prompt, *response] for response in group.responses]
        width = max(map(len, rows))
        pad = model.config.get_text_config().pad_token_id
        ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        with torch.no_grad():
            values.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].double().tolist())
    return np.array(values)


def head_rewards_of(model: Any, folder: Path, groups: list[TokenizedGroup]) -> Values:
    """The preference head's weight on the last hidden state of each candidate's last token."""
    weight = load_file(folder / "preference_head.safetensors")["weight.weight"].double()[0]
    values = []
    for group in groups:
        for response in group.responses:
            ids = torch.tensor([[*group.prompt, *response]])
            with torch.no_grad():
                hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
            values.append((hidden[0, -1].double() @ weight).item())
    return np.array(values).reshape(len(groups), -1)


def evaluated(model: Path, data: Path, out: Path) -> Values:
    """`penchant evaluate`, by the file it writes for each group."""
    assert penchant(["evaluate", str(model), "--data", str(data), "--per-example", str(out), "--json"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return np.array([[candidate["log_prob"] for candidate in row["candidates"]] for row in rows])


def ranked(model: Path, data: Path, by: str, out: Path) -> Values:
    """`penchant rank`, by the file it writes."""
    assert penchant(["rank", str(model), "--data", str(data), "--by", by, "--output", str(out), "--json"]) == 0
    return np.array([json.loads(line)["scores"] for line in out.read_text().splitlines()])


def during_training(folder: Path, name: str) -> dict[str, float]:
    """The last held-out metrics of the run itself."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if f"eval_{name}/chosen" in line][-1]
    assert last["step"] == 4
    return {side: last[f"eval_{name}/{side}"] for side in ("chosen", "rejected") if f"eval_{name}/{side}" in last}


def by_transformers(folder: Path) -> Any:
    """The class that the folder's configuration names, and nothing of Penchant."""
    kind = hf.AutoConfig.from_pretrained(folder).architectures[0]
    model, report = getattr(hf, kind).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    return model.eval()


def by_peft(base: Path, folder: Path, reward: bool) -> Any:
    """The starting model by transformers with the run's adapter by PEFT."""
    from peft import PeftModel

    kind = hf.AutoConfig.from_pretrained(base).architectures[0]
    if reward:
        model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        # The adapter cannot carry the configuration; its tokenizer does.
        model.config.get_text_config().pad_token_id = hf.AutoTokenizer.from_pretrained(folder).pad_token_id
    else:
        model = getattr(hf, kind).from_pretrained(base)
    return PeftModel.from_pretrained(model, folder).eval()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
class TestTheSameNumbersAtEveryStation:
    @pytest.mark.parametrize("method", ["dpo", "sft"])
    def test_of_a_language_model(
        self,
        family: str,
        method: str,
        lora: bool,
        journey: Callable[[str, str, bool], Path],
        held_out: list[TokenizedGroup],
        starting_models: dict[str, Path],
        pairs: tuple[Path, Path],
        tmp_path: Path,
    ) -> None:
        run, data = journey(family, method, lora), pairs[1]
        expected = evaluated(run, data, tmp_path / "run.jsonl")
        changed = np.abs(expected - evaluated(starting_models[family], data, tmp_path / "start.jsonl"))
        assert changed.max() > 0.1
        if method == "dpo":
            metrics = during_training(run, "logps")
            assert [metrics["chosen"], metrics["rejected"]] == pytest.approx(expected.mean(0).tolist(), abs=TOLERANCE)
        folder = run
        if lora:
            folder = tmp_path / "merged"
            assert penchant(["merge", str(run), str(folder)]) == 0
            peft = by_peft(starting_models[family], run, False)
            assert log_probs_of(peft, held_out) == pytest.approx(expected, abs=TOLERANCE)
            assert evaluated(folder, data, tmp_path / "merged.jsonl") == pytest.approx(expected, abs=TOLERANCE)
        assert log_probs_of(by_transformers(folder), held_out) == pytest.approx(expected, abs=TOLERANCE)
        if family in GGUF:
            file = tmp_path / "model.gguf"
            assert penchant(["export", str(run), str(file), "--type", "f32"]) == 0
            assert evaluated(file, data, tmp_path / "gguf.jsonl") == pytest.approx(expected, abs=TOLERANCE)

    def test_of_a_reward_model(
        self,
        family: str,
        lora: bool,
        journey: Callable[[str, str, bool], Path],
        held_out: list[TokenizedGroup],
        starting_models: dict[str, Path],
        pairs: tuple[Path, Path],
        tmp_path: Path,
    ) -> None:
        run, data = journey(family, "bradley_terry", lora), pairs[1]
        expected = ranked(run, data, "reward", tmp_path / "run.jsonl")
        metrics = during_training(run, "rewards")
        assert [metrics["chosen"], metrics["rejected"]] == pytest.approx(expected.mean(0).tolist(), abs=TOLERANCE)
        folder = run
        if lora:
            folder = tmp_path / "merged"
            assert penchant(["merge", str(run), str(folder)]) == 0
            peft = by_peft(starting_models[family], run, True)
            assert rewards_of(peft, held_out) == pytest.approx(expected, abs=TOLERANCE)
            merged = ranked(folder, data, "reward", tmp_path / "merged.jsonl")
            assert merged == pytest.approx(expected, abs=TOLERANCE)
        assert rewards_of(by_transformers(folder), held_out) == pytest.approx(expected, abs=TOLERANCE)
        assert penchant(["export", str(run), str(tmp_path / "model.gguf")]) == 2
        assert not (tmp_path / "model.gguf").exists()

    def test_of_a_preference_head(
        self,
        family: str,
        lora: bool,
        journey: Callable[[str, str, bool], Path],
        held_out: list[TokenizedGroup],
        starting_models: dict[str, Path],
        pairs: tuple[Path, Path],
        tmp_path: Path,
    ) -> None:
        run, data = journey(family, "preference_head", lora), pairs[1]
        rewards = ranked(run, data, "head", tmp_path / "run.jsonl")
        log_probs = evaluated(run, data, tmp_path / "run-log-probs.jsonl")
        metrics = during_training(run, "head")
        assert [metrics["chosen"], metrics["rejected"]] == pytest.approx(rewards.mean(0).tolist(), abs=TOLERANCE)
        folder = run
        if lora:
            folder = tmp_path / "merged"
            assert penchant(["merge", str(run), str(folder)]) == 0
            peft = by_peft(starting_models[family], run, False)
            assert head_rewards_of(peft, run, held_out) == pytest.approx(rewards, abs=TOLERANCE)
            assert log_probs_of(peft, held_out) == pytest.approx(log_probs, abs=TOLERANCE)
            assert ranked(folder, data, "head", tmp_path / "merged.jsonl") == pytest.approx(rewards, abs=TOLERANCE)
        model = by_transformers(folder)
        assert head_rewards_of(model, folder, held_out) == pytest.approx(rewards, abs=TOLERANCE)
        assert log_probs_of(model, held_out) == pytest.approx(log_probs, abs=TOLERANCE)
