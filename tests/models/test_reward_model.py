"""Reward models to train from a LoRA run's folder: merged, whole and trainable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from penchant.config.run import load_config
from penchant.errors import ModelError
from penchant.models.loading import load_model
from penchant.models.reward_model import load_reward_model, start_reward_model
from penchant.training.run import train


@pytest.fixture
def adapter(write_config, tmp_path) -> Path:
    """The folder of a LoRA run of DPO, whose adapter is far from the identity."""
    file = write_config(lora={"rank": 4}, training={"learning_rate": 0.1, "max_steps": 3})
    return train(load_config(file, [f"output={tmp_path / 'adapter'}", "data.held_out=null"]))


def test_a_language_models_adapter_is_in_the_backbone(adapter, tiny_model):
    model = start_reward_model(str(adapter))
    backbone, merged, base = (
        {name: value.detach() for name, value in model.base_model.named_parameters()}
        for model in (model, load_model(str(adapter)), load_model(str(tiny_model)))
    )
    assert backbone.keys() == merged.keys() == base.keys()
    assert all(torch.equal(backbone[name], merged[name]) for name in merged)
    name = "layers.1.mlp.down_proj.weight"
    assert float((backbone[name] - base[name]).abs().max()) > 0.01
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.score.weight.shape == (1, 32)
    assert float(model.score.weight.detach().std()) == pytest.approx(33**-0.5, rel=0.5)


def test_a_reward_model_is_trained_from_it(adapter, write_config, tmp_path):
    objective = ["output=" + str(tmp_path / "reward"), "objective.name=bradley_terry", f"model={adapter}"]
    folder = train(load_config(write_config(training={"max_steps": 3}), objective))
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log if "loss" in line] == [1, 2, 3]
    start, end = dict(load_model(str(adapter)).base_model.named_parameters()), load_file(folder / "model.safetensors")
    assert {f"model.{name}" for name in start} | {"score.weight"} == end.keys()
    changes = [float((end[f"model.{name}"] - value.detach()).abs().max()) for name, value in start.items()]
    assert 0 < min(changes) <= max(changes) < 0.01  # 3 steps of at most 1e-3 each


@pytest.mark.slow
def test_a_reward_models_adapter_keeps_its_head(write_config, tmp_path):
    file = write_config(objective={"name": "bradley_terry"}, lora={"rank": 4}, training={"learning_rate": 0.1})
    folder = train(load_config(file, ["training.max_steps=3"]))
    torch.manual_seed(1)
    model, trained_model = start_reward_model(str(folder)), load_reward_model(str(folder))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), trained_model.parameters(), strict=True))
    saved = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(model.score.weight, saved["base_model.model.score.weight"])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_language_models_adapter_is_no_reward_model(adapter):
    with pytest.raises(ModelError, match="a language model's adapter, which has no head") as error:
        load_reward_model(str(adapter))
    assert error.value.where == str(adapter)
    assert f"model={adapter} objective.name=bradley_terry" in error.value.fix
