"""The instruction residual over model folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from penchant.cli.main import run
from penchant.errors import ModelError
from penchant.models.residual import add_residual


def save_random_model(
    folder: Path, tokenizer: Path, seed: int, *, shards: str = "5GB", dtype=torch.float32, **changes
) -> str:
    """A model of random weights beside a tokenizer."""
    torch.manual_seed(seed)
    words = AutoTokenizer.from_pretrained(tokenizer)
    sizes = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(**{**sizes, "num_attention_heads": 2, "num_key_value_heads": 2, **changes})
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder, max_shard_size=shards)
    words.save_pretrained(folder)
    return str(folder)


def weights(folder) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.fixture
def three_models(tmp_path, tiny_model):
    """An adapted model in several files, a base and an instruct model."""
    return tuple(
        save_random_model(tmp_path / name, tiny_model, seed, shards=shards)
        for seed, (name, shards) in enumerate([("adapted", "20KB"), ("base", "5GB"), ("instruct", "40KB")])
    )


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_every_weight_is_the_formulas(three_models, tmp_path, scale):
    assert len(list(Path(three_models[0]).glob("*.safetensors"))) > 1
    add_residual(*three_models, tmp_path / "out", scale=scale)
    adapted, base, instruct = map(weights, three_models)
    written_weights = weights(tmp_path / "out")
    assert written_weights.keys() == adapted.keys()
    for name, value in written_weights.items():
        torch.testing.assert_close(value, adapted[name] + scale * (instruct[name] - base[name]), rtol=1e-6, atol=1e-7)


def test_the_base_itself_gives_the_instruct_model(three_models, tmp_path):
    _, base, instruct = three_models
    add_residual(base, base, instruct, tmp_path / "out")
    expected = weights(instruct)
    for name, value in weights(tmp_path / "out").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


def test_the_dtype_is_the_adapted_models(tmp_path, tiny_model, three_models):
    half = save_random_model(tmp_path / "half", tiny_model, 5, dtype=torch.bfloat16)
    add_residual(half, *three_models[1:], tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == torch.bfloat16


def test_where_responses_end_is_the_instruct_models(three_models, tmp_path):
    file = Path(three_models[2]) / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [2, 5], "temperature": 0.6, "do_sample": False}))
    add_residual(*three_models, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == json.loads(file.read_text())


def test_tokens_that_tuning_added(three_models, tmp_path, tiny_model):
    words = AutoTokenizer.from_pretrained(tiny_model)
    n = len(words)
    words.add_tokens(["<|user|>", "<|assistant|>"])
    words.chat_template = "{{ messages }}"
    words.save_pretrained(tmp_path / "words")
    instruct = save_random_model(tmp_path / "grown", tmp_path / "words", 7)
    add_residual(*three_models[:2], instruct, tmp_path / "out")
    name = "model.embed_tokens.weight"
    adapted, base, tuned, written_weight = (
        weights(source)[name] for source in (*three_models[:2], instruct, tmp_path / "out")
    )
    assert written_weight.shape == (n + 2, 16)
    torch.testing.assert_close(written_weight[:n], adapted + tuned[:n] - base)
    assert torch.equal(written_weight[n:], tuned[n:])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids("<|assistant|>") == n + 1
    assert tokenizer.chat_template == "{{ messages }}"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == n + 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "in .*base, .*; expected is one shape"),
        ({"num_hidden_layers": 3}, "it has no model.layers.2.*3 such weights|it has no model.layers.2"),
        ({"num_hidden_layers": 1}, "it has no model.layers.1"),
        ({"tie_word_embeddings": True}, "it has no lm_head.weight"),
    ],
)
def test_models_of_different_shapes(three_models, tmp_path, tiny_model, changes, message):
    other = save_random_model(tmp_path / "other", tiny_model, 3, **changes)
    with pytest.raises(ModelError, match=message):
        add_residual(*three_models[:2], other, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".writing-out").exists()


def test_tokenizers_that_number_differently(three_models, tmp_path):
    file = Path(three_models[2]) / "tokenizer.json"
    values = json.loads(file.read_text())
    vocabulary = values["model"]["vocab"]
    token, other_token = list(vocabulary)[-2:]
    vocabulary[token], vocabulary[other_token] = vocabulary[other_token], vocabulary[token]
    file.write_text(json.dumps(values))
    with pytest.raises(ModelError, match="rows of the embedding would be mixed up"):
        add_residual(*three_models, tmp_path / "out")


def test_an_adapter_and_an_old_format(three_models, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": three_models[1]}))
    with pytest.raises(ModelError, match="this is an adapter"):
        add_residual(str(adapter), *three_models[1:], tmp_path / "out")
    old = Path(save_random_model(tmp_path / "old", Path(three_models[1]), 4))
    (old / "model.safetensors").rename(old / "pytorch_model.bin")
    with pytest.raises(ModelError, match="it has neither"):
        add_residual(str(old), *three_models[1:], tmp_path / "out")


def test_from_the_command_line(three_models, tmp_path, capsys):
    adapted, base, instruct = three_models
    arguments = ["residual", adapted, "--base", base, "--instruct", instruct, "--output", str(tmp_path / "out")]
    assert run(arguments) == 0
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    assert run(arguments) == 2
    assert "it is there already" in capsys.readouterr().err
