"""Adapters on architectures with layers that cannot have one: one clear error, whose advice works."""

from __future__ import annotations

import re

import pytest
import torch
import transformers as hf

from penchant.errors import ConfigError
from penchant.models.lora import add_adapters

_COMMON = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
_HEADS = {**_COMMON, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_ssm": 64, "mamba_d_state": 8}
_NEMOTRON = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1}
CONFIGS = {
    "llama4": lambda: hf.Llama4TextConfig(
        **_HEADS, intermediate_size_mlp=48, num_local_experts=2, head_dim=8, num_experts_per_tok=1
    ),
    "phimoe": lambda: hf.PhimoeConfig(**_HEADS, num_local_experts=2),
    "mamba": lambda: hf.MambaConfig(**_COMMON, state_size=8),
    "falcon-mamba": lambda: hf.FalconMambaConfig(**_COMMON, state_size=8),
    "mamba2": lambda: hf.Mamba2Config(**_COMMON, state_size=8, num_heads=8, head_dim=8, n_groups=1),
    "falcon-h1": lambda: hf.FalconH1Config(**_HEADS, **_MAMBA),
    "nemotron-h": lambda: hf.NemotronHConfig(**_HEADS, **_NEMOTRON, layers_block_type=["mamba", "attention"]),
}
IDS = torch.tensor([[4, 5, 6, 7]])


def model_of(name: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(CONFIGS[name]())


def add(model: hf.PreTrainedModel, targets: str | list[str]) -> None:
    add_adapters(model, rank=2, alpha=4, dropout=0.0, targets=targets, task="CAUSAL_LM")


def advised_names(error: ConfigError) -> list[str]:
    """The names that an error's advice lists, as they would be typed."""
    match = re.search(r"lora\.targets=\[([\w,]+)\]", error.fix)
    assert match is not None, error.fix
    return match[1].split(",")


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "phimoe"])
def test_all_linear_is_refused_with_names_that_train(name):
    with pytest.raises(ConfigError, match=r"^lora\.targets: .*'(router|out_proj)'") as error:
        add(model_of(name), "all-linear")
    assert "all-linear" not in error.value.fix
    targets = advised_names(error.value)
    model = model_of(name)
    add(model, targets)
    model(IDS, use_cache=False).logits.square().mean().backward()
    matrices = {key: p for key, p in model.named_parameters() if "lora_B" in key}
    assert {key.rpartition(".lora_B")[0].rpartition(".")[2] for key in matrices} == set(targets)
    for key, matrix in matrices.items():
        assert matrix.grad is not None, key
        assert matrix.grad.any(), key


@pytest.mark.parametrize("name", ["llama4", "phimoe"])
def test_a_router_that_is_named(name):
    with pytest.raises(ConfigError, match=r"'router' is a \w+Router, which computes more than a matrix product"):
        add(model_of(name), ["q_proj", "router"])


@pytest.mark.parametrize("layer", ["x_proj", "dt_proj"])
@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"])
def test_a_layer_whose_weight_is_read_past_its_forward(name, layer):
    with pytest.raises(ConfigError, match=f"reads the weight of '{layer}' past its forward") as error:
        add(model_of(name), ["in_proj", layer])
    assert advised_names(error.value) == ["in_proj", "lm_head"]


def test_a_linear_of_its_own_that_is_a_matrix_product():
    config = hf.FalconConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, num_attention_heads=4)
    model = hf.AutoModelForCausalLM.from_config(config)
    add(model, "all-linear")
    assert any("lora_B" in name for name, _ in model.named_parameters())


def test_a_name_that_is_no_layer_is_answered_with_all_that_there_are():
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**_HEADS))
    with pytest.raises(ConfigError, match="no module is called q_prj") as error:
        add(model, ["q_prj", "v_proj"])
    names = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    assert error.value.fix == f"use all-linear, or names of the model's layers: {names}"
