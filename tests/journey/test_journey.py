"""From a starting model to every folder it ends in: the same held-out log-probs (or rewards) everywhere.

A run is trained, stopped half-way and resumed. Its numbers are compared between the run's last metrics, `penchant
evaluate` or `rank`, the merged folder, transformers alone, PEFT alone, and a GGUF file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file

from penchant.cli.main import run as penchant
from penchant.config.run import parse_config
from penchant.data.tokenized import TokenizedGroup
from penchant.training.loop import Loop
from penchant.training.run import train

FAMILIES = ("gemma3", "gpt2", "llama-tied", "qwen3", "qwen3.5")
GGUF = {"llama-tied"}
TOLERANCE = 1e-5
Values = np.ndarray
"""[G, K] log-probs or rewards."""


class Stopped(Exception):
    """Ends a run half-way."""


@dataclass(frozen=True)
class Journey:
    """A finished run, and readers of its held-out numbers.

    Attributes:
        start: the starting model's folder.
        run: the run's folder.
        model: the folder of a whole model: the run's own, or of its adapter merged.
        held_out: the file of held-out pairs.
        scratch: a folder for files that verbs write.
    """

    start: Path
    run: Path
    model: Path
    held_out: Path
    scratch: Path

    def log_probs(self, model: Path) -> Values:
        """`penchant evaluate`, by the file it writes for each group."""
        file = self.scratch / f"{model.name}-log-probs.jsonl"
        flags = ["--data", str(self.held_out), "--per-example", str(file), "--json"]
        assert penchant(["evaluate", str(model), *flags]) == 0
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        return np.array([[candidate["log_prob"] for candidate in row["candidates"]] for row in rows])

    def rewards(self, model: Path, by: str) -> Values:
        """`penchant rank`, by the file it writes."""
        file = self.scratch / f"{model.name}-{by}.jsonl"
        flags = ["--data", str(self.held_out), "--by", by, "--output", str(file), "--json"]
        assert penchant(["rank", str(model), *flags]) == 0
        return np.array([json.loads(line)["scores"] for line in file.read_text().splitlines()])

    def metrics(self, name: str) -> list[float]:
        """The last held-out means of chosen and rejected that the run itself logged."""
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        last = [line for line in lines if f"eval_{name}/chosen" in line][-1]
        assert last["step"] == 4
        return [last[f"eval_{name}/chosen"], last[f"eval_{name}/rejected"]]

    def loaded(self) -> Iterator[tuple[Any, Path]]:
        """The trained model as transformers loads it, and under LoRA as PEFT does, each with its folder."""
        kind = hf.AutoConfig.from_pretrained(self.model).architectures[0]
        model, report = getattr(hf, kind).from_pretrained(self.model, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        yield model.eval(), self.model
        if self.run != self.model:
            yield self._by_peft(kind), self.run

    def _by_peft(self, kind: str) -> Any:
        """The starting model by transformers with the run's adapter by PEFT."""
        from peft import PeftModel

        if kind.endswith("ForSequenceClassification"):
            base = hf.AutoModelForSequenceClassification.from_pretrained(self.start, num_labels=1)
            # The adapter cannot carry the configuration; its tokenizer does.
            base.config.get_text_config().pad_token_id = hf.AutoTokenizer.from_pretrained(self.run).pad_token_id
        else:
            base = getattr(hf, kind).from_pretrained(self.start)
        return PeftModel.from_pretrained(base, self.run).eval()


@pytest.fixture
def travel(
    family: str,
    lora: bool,
    starting_models: dict[str, Path],
    pairs: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Journey]:
    """Trains four steps by a method, stopped after the second and resumed, and merges the adapter."""

    def run(method: str) -> Journey:
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
            if loop.state.step == 2:
                raise Stopped
            return step(loop, *arguments)

        monkeypatch.setattr(Loop, "step", stop_at_two)
        with pytest.raises(Stopped):
            train(config)
        monkeypatch.setattr(Loop, "step", step)
        folder = model = train(config, resume=True)
        if lora:
            model = tmp_path / "merged"
            assert penchant(["merge", str(folder), str(model)]) == 0
        return Journey(starting_models[family], folder, model, pairs[1], tmp_path)

    return run


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


def close(expected: Values | list[float]) -> Any:
    return pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
class TestSameNumbersAtEveryStage:
    @pytest.mark.slow_but("dpo-llama-tied", "sft-gpt2")
    @pytest.mark.parametrize("method", ["dpo", "sft"])
    def test_language_model(
        self, family: str, method: str, travel: Callable[[str], Journey], held_out: list[TokenizedGroup]
    ) -> None:
        journey = travel(method)
        expected = journey.log_probs(journey.run)
        assert np.abs(expected - journey.log_probs(journey.start)).max() > 0.1
        assert journey.log_probs(journey.model) == close(expected)
        for model, _ in journey.loaded():
            assert log_probs_of(model, held_out) == close(expected)
        if method == "dpo":
            assert journey.metrics("logps") == close(expected.mean(0).tolist())
        if family in GGUF:
            file = journey.scratch / "model.gguf"
            assert penchant(["export", str(journey.run), str(file), "--type", "f32"]) == 0
            assert journey.log_probs(file) == close(expected)

    @pytest.mark.slow_but("llama-tied")
    def test_reward_model(self, travel: Callable[[str], Journey], held_out: list[TokenizedGroup]) -> None:
        journey = travel("bradley_terry")
        expected = journey.rewards(journey.run, "reward")
        assert journey.metrics("rewards") == close(expected.mean(0).tolist())
        assert journey.rewards(journey.model, "reward") == close(expected)
        for model, _ in journey.loaded():
            assert rewards_of(model, held_out) == close(expected)
        file = journey.scratch / "model.gguf"
        assert penchant(["export", str(journey.run), str(file)]) == 2
        assert not file.exists()

    @pytest.mark.slow_but("gpt2-full")
    def test_preference_head(self, travel: Callable[[str], Journey], held_out: list[TokenizedGroup]) -> None:
        journey = travel("preference_head")
        rewards, log_probs = journey.rewards(journey.run, "head"), journey.log_probs(journey.run)
        assert journey.metrics("head") == close(rewards.mean(0).tolist())
        assert journey.rewards(journey.model, "head") == close(rewards)
        for model, folder in journey.loaded():
            assert head_rewards_of(model, folder, held_out) == close(rewards)
            assert log_probs_of(model, held_out) == close(log_probs)
