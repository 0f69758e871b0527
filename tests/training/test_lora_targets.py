"""Whole runs with adapters on the output head, the embedding or both: one margin at every station, or no folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from penchant.config.run import load_config
from penchant.data.reading import read_groups
from penchant.engine.distributed import World
from penchant.errors import ConfigError, TrainingError
from penchant.evaluation.held_out import score
from penchant.models.loading import load_model
from penchant.models.lora import merge_adapter
from penchant.planning.plan import plan
from penchant.training import loop
from penchant.training.run import train

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = [["q_proj", "lm_head"], ["lm_head"], ["q_proj", "embed_tokens"], r".*(lm_head|embed_tokens|v_proj)"]
BETA = 0.1


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, tiny_model, tmp_path) -> Path:
    if request.param:
        return tiny_model
    tied = AutoModelForCausalLM.from_pretrained(tiny_model)
    tied.config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = LlamaForCausalLM(tied.config)
    model.load_state_dict({**tied.state_dict(), "lm_head.weight": torch.randn_like(tied.lm_head.weight)})
    model.save_pretrained(tmp_path / "untied")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def by_hand(model, tokenizer, groups) -> list[list[float]]:
    """Log-probs of candidates by a model's own forward."""
    table = []
    for group in groups:
        row = []
        for candidate in group.candidates:
            prompt = tokenizer(group.prompt)["input_ids"]
            ids = torch.tensor([[*tokenizer(group.prompt + candidate)["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                log_probs = model(ids).logits.log_softmax(-1)[0]
            row.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1])))
        table.append(row)
    return table


def margin(policy: list[list[float]], reference: list[list[float]]) -> float:
    gains = [[p - r for p, r in zip(*rows, strict=True)] for rows in zip(policy, reference, strict=True)]
    return BETA * sum(chosen - rejected for chosen, rejected in gains) / len(gains)


@pytest.mark.slow_but("tied-['q_proj', 'lm_head']")
@pytest.mark.parametrize("targets", TARGETS, ids=str)
def test_one_margin_at_every_station(write_config, base, tiny_pairs, tmp_path, targets):
    file = write_config(
        model=str(base),
        data={"held_out": str(tiny_pairs)},
        lora={"rank": 4, "targets": targets},
        objective={"name": "dpo", "beta": BETA},
        training={"learning_rate": 0.02, "batch_size": 24},
    )
    folder = train(load_config(file, []))
    adapter_tensors = {
        key: tensor for key, tensor in load_file(folder / "adapter_model.safetensors").items() if "lora_" in key
    }
    assert adapter_tensors.keys() == load_file(folder / "adapter_model.safetensors").keys()
    assert all(tensor.abs().max() > 0 for tensor in adapter_tensors.values())
    groups = read_groups(str(tiny_pairs)).groups
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = by_hand(AutoModelForCausalLM.from_pretrained(base), tokenizer, groups)
    merge_adapter(str(folder), tmp_path / "merged")
    unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    margins = {
        "evaluate": margin([list(group.log_probs) for group in score(str(folder), groups, SINGLE)], reference),
        "peft": margin(by_hand(unmerged, tokenizer, groups), reference),
        "merged": margin(
            by_hand(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), tokenizer, groups), reference
        ),
    }
    assert abs(last["eval_rewards/margins"]) > 0.01
    assert margins == pytest.approx(dict.fromkeys(margins, last["eval_rewards/margins"]), rel=1e-5, abs=1e-5)


SINGLE = World(0, 1, torch.device("cpu"))


@pytest.mark.slow_but("['lm_head']")
@pytest.mark.parametrize("targets", [["lm_head"], r".*(lm_head|embed_tokens)"], ids=str)
def test_it_can_be_planned(write_config, tiny_model, monkeypatch, targets):
    monkeypatch.setattr("penchant.planning.plan.SECONDS", 0.05)
    planned = plan(load_config(write_config(lora={"rank": 4, "targets": targets}), []), available=1 << 40)
    assert planned.forecast.fits
    assert planned.forecast.total_seconds
    assert planned.forecast.memory.gradients > 0


@pytest.mark.slow
def test_an_adapter_is_planned_with_its_own_vocabulary(write_config, tiny_model, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model

    monkeypatch.setattr("penchant.planning.plan.SECONDS", 0.05)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_model), AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["cats"])
    model.resize_token_embeddings(len(tokenizer))
    get_peft_model(model, LoraConfig(r=2, modules_to_save=["embed_tokens", "lm_head"])).save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    planned = plan(load_config(write_config(model=str(tmp_path / "a")), []), available=1 << 40)
    assert planned.forecast.memory.gradients == 4 * sum(p.numel() for p in load_model(str(tmp_path / "a")).parameters())


class TestFailedStart:
    def test_the_output_folder_is_given_back(self, write_config, monkeypatch):
        file = write_config()
        monkeypatch.setattr(loop, "backward", _failing(0))
        with pytest.raises(RuntimeError, match="by the test"):
            train(load_config(file, []))
        folder = Path(load_config(file, []).output)
        assert not folder.exists()
        monkeypatch.undo()
        assert (train(load_config(file, [])) / "model.safetensors").exists()

    def test_a_run_that_took_a_step_is_left_to_resume(self, write_config, monkeypatch):
        file = write_config(checkpoints={"every": 1})
        monkeypatch.setattr(loop, "backward", _failing(1))
        with pytest.raises(RuntimeError, match="by the test"):
            train(load_config(file, []))
        monkeypatch.undo()
        assert (train(load_config(file, []), resume=True) / "model.safetensors").exists()

    def test_a_loss_that_is_no_number_at_the_first_step(self, write_config):
        file = write_config(objective={"name": "dpo", "beta": 1e300})
        with pytest.raises(TrainingError):
            train(load_config(file, []))
        assert not Path(load_config(file, []).output).exists()


def _failing(steps: int):
    """The loop's backward, failing after so many steps."""
    original, calls = loop.backward, []

    def backward(*arguments):
        calls.append(None)
        if len(calls) > steps:
            raise RuntimeError("stopped by the test")
        return original(*arguments)

    return backward


class TestPreferenceHeads:
    """They read what comes before the output head."""

    @pytest.mark.parametrize("targets", [["lm_head"], r".*(q_proj|lm_head)"], ids=str)
    def test_an_adapter_that_nothing_would_train_is_refused(self, write_config, targets):
        file = write_config(objective={"name": "preference_head"}, lora={"rank": 4, "targets": targets})
        for start in (train, plan):
            with pytest.raises(ConfigError, match=r"lora\.targets names the output head"):
                start(load_config(file, []))
        assert not Path(load_config(file, []).output).exists()

    def test_beside_a_loss_of_log_probs_it_is_trained(self, write_config, notices):
        parts = [{"weight": 1.0, "name": name} for name in ("preference_head", "sft")]
        file = write_config(
            objective={"name": "weighted_sum", "parts": parts}, lora={"rank": 4, "targets": ["q_proj", "lm_head"]}
        )
        folder = train(load_config(file, []))
        assert load_file(folder / "adapter_model.safetensors")["base_model.model.lm_head.lora_B.weight"].any()
        assert not any("as before training" in line for line in notices.messages)

    def test_an_adapter_that_nothing_trained_is_logged(self, write_config, notices):
        train(load_config(write_config(lora={"rank": 4}, training={"learning_rate": 1e-60}), []))
        assert any(line.startswith("14 adapters are as before training") for line in notices.messages)


def test_an_adapters_folder_is_the_same_bytes_in_every_process(write_config, tmp_path, run_penchant):
    """PEFT writes a set of modules in an order that depends on the process's seed of hashes."""
    file = write_config(lora={"rank": 2}, training={"max_steps": 1}, data={"held_out": None})
    train(load_config(file, [f"output={tmp_path / 'here'}"]))
    assert run_penchant("train", file, f"output={tmp_path / 'there'}").returncode == 0
    texts = [(tmp_path / name / "adapter_config.json").read_bytes() for name in ("here", "there")]
    assert texts[0] == texts[1]
    names = json.loads(texts[0])["target_modules"]
    assert names == sorted(names)
    assert len(names) == 14  # seven in each of two layers
