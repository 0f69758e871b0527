"""The kind of model in a folder, by its files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from penchant.errors import ModelError
from penchant.models.loading import load_model
from penchant.models.model_kind import model_kind, require_language_model
from penchant.models.preference_head import PreferenceHead, save_head

MATRIX = torch.zeros(1, 2)
LLAMA = "model.embed_tokens.weight"


def folder(path: Path, config: dict[str, object] | None, adapter: dict[str, object] | None, names: list[str]) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for file, values in (("config.json", config), ("adapter_config.json", adapter)):
        if values is not None:
            (path / file).write_text(json.dumps(values))
    stem = "model" if adapter is None else "adapter_model"
    save_file({name: MATRIX.clone() for name in names}, path / f"{stem}.safetensors")
    return str(path)


@pytest.mark.parametrize(
    ("config", "names", "task"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, [LLAMA], "language_model"),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"]}, [LLAMA], "language_model"),
        ({"architectures": ["LlamaForSequenceClassification"]}, [LLAMA, "score.weight"], "reward_model"),
        ({"architectures": ["GPT2ForSequenceClassification"]}, ["score.weight"], "reward_model"),
        ({"architectures": ["Qwen2ForTokenClassification"]}, ["score.weight"], "reward_model"),
        ({"architectures": ["Qwen2ForRewardModel"]}, ["score.0.weight"], "reward_model"),
        ({"architectures": ["LlamaForRewardModelWithGating"]}, [LLAMA], "reward_model"),
        ({"architectures": None}, [LLAMA, "score.weight"], "reward_model"),
        ({}, [LLAMA, "lm_head.weight"], "language_model"),
    ],
)
def test_by_architecture_and_by_weights(tmp_path, config, names, task):
    kind = model_kind(folder(tmp_path / "model", config, None, names))
    assert (kind.task, kind.is_adapter, kind.heads) == (task, False, ())


LORA = "base_model.model.model.layers.0.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("adapter", "names", "base", "task"),
    [
        ({"task_type": "CAUSAL_LM"}, [LORA], "LlamaForCausalLM", "language_model"),
        ({"task_type": "SEQ_CLS"}, [LORA], "LlamaForCausalLM", "reward_model"),
        ({"task_type": "TOKEN_CLS"}, [LORA], "LlamaForCausalLM", "reward_model"),
        ({"task_type": None}, [LORA], "LlamaForCausalLM", "language_model"),
        ({"task_type": None}, [LORA], "LlamaForSequenceClassification", "reward_model"),
        ({"modules_to_save": ["score"]}, [LORA], "LlamaForCausalLM", "reward_model"),
        ({}, [LORA, "base_model.model.score.weight"], "LlamaForCausalLM", "reward_model"),
    ],
)
def test_an_adapter_by_its_task_its_weights_and_its_base(tmp_path, adapter, names, base, task):
    base_folder = folder(tmp_path / "base", {"architectures": [base]}, None, [LLAMA])
    kind = model_kind(folder(tmp_path / "adapter", None, {**adapter, "base_model_name_or_path": base_folder}, names))
    assert (kind.task, kind.is_adapter) == (task, True)


def test_preference_heads_beside_a_model(tmp_path):
    path = Path(folder(tmp_path / "model", {"architectures": ["LlamaForCausalLM"]}, None, [LLAMA]))
    for name in ("helpful", "harmless"):
        save_head(path, PreferenceHead(2, "identity"), name)
    (path / "other.json").write_text('["size", "pooling"]')
    assert model_kind(str(path)).heads == ("harmless", "helpful")


@pytest.mark.parametrize("damage", ["nothing", "no JSON", "a list", "cut weights"])
def test_what_cannot_be_read_is_left_to_loading(tmp_path, damage):
    path = tmp_path / "model"
    if damage != "nothing":
        folder(path, {}, None, [LLAMA])
        (path / "config.json").write_text({"no JSON": "{", "a list": "[1]", "cut weights": "{}"}[damage])
    if damage == "cut weights":
        (path / "model.safetensors").write_bytes(b"cut")
    assert model_kind(str(path)).task == "language_model"


def test_loading_a_language_model_refuses_a_reward_model(tmp_path):
    source = folder(tmp_path / "model", {"architectures": ["LlamaForSequenceClassification"]}, None, ["score.weight"])
    for refuses in (load_model, require_language_model):
        with pytest.raises(ModelError, match="this is a reward model, a LlamaForSequenceClassification") as error:
            refuses(source)
        assert error.value.where == source
        assert f"penchant evaluate {source} --data FILE" in error.value.fix
