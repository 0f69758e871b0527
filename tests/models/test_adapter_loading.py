"""Adapters trained elsewhere: loaded in full with PEFT's logits, or refused by name."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from penchant.errors import ModelError
from penchant.models.loading import load_model, load_tokenizer
from penchant.models.lora import merge_adapter
from penchant.models.reward_model import start_reward_model

pytestmark = pytest.mark.filterwarnings("ignore")

GROWN = ["<think>", "</think>", "<call>"]


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(request, tiny_model, tmp_path):
    """A folder with a small model and its tokenizer."""
    folder = tmp_path / "base"
    config = hf.AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=request.param)
    torch.manual_seed(0)
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def write_adapter(base, folder, *, grown=False, bias_base=False, tokenizer=True, save=None, **settings):
    """Change all trainable weights and save as PEFT does; returns PEFT's logits of some ids."""
    model = hf.AutoModelForCausalLM.from_pretrained(base)
    words = hf.AutoTokenizer.from_pretrained(base)
    if grown:
        words.add_tokens(GROWN)
        model.resize_token_embeddings(len(words), mean_resizing=False)
    chosen = {"target_modules": ["q_proj", "v_proj"], "r": 4, "task_type": "CAUSAL_LM", **settings}
    adapted = get_peft_model(model, LoraConfig(**chosen)).eval()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(adapted.named_parameters()):
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=source) * 0.1)
    adapted.save_pretrained(folder, **(save or {}))
    if tokenizer:
        words.save_pretrained(folder)
    ids = torch.tensor([[1, 5, 9, len(words) - 1, 7]])
    with torch.no_grad():
        return ids, adapted(ids).logits


KINDS = {
    "embedding and head": {"grown": True, "modules_to_save": ["embed_tokens", "lm_head"]},
    "embedding": {"grown": True, "modules_to_save": ["embed_tokens"], "save": {"save_embedding_layers": True}},
    "embedding layers saved": {"grown": True},
    "new tokens": {"grown": True, "trainable_token_indices": [20, 21, 22, 23, 24, 25, 26]},
    "tokens": {"trainable_token_indices": [5, 9]},
    "head": {"modules_to_save": ["lm_head"]},
    "norm": {"modules_to_save": ["norm"]},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "bias": {"bias": "all"},
    "lora bias": {"lora_bias": True},
    "lora bias everywhere": {"lora_bias": True, "target_modules": "all-linear"},
    "ranks": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "layers": {"layers_to_transform": [1]},
    "both by lora": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tied by lora": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "grown lora": {"grown": True, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "dora head": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
}


@pytest.mark.slow_but("tied-head", "tied-lora bias", "tied-dora", "tied-new", "tied-both")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_pefts(base, tmp_path, kind):
    ids, expected = write_adapter(base, tmp_path / "adapter", **KINDS[kind])
    model = load_model(str(tmp_path / "adapter"))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    tokenizer = load_tokenizer(str(tmp_path / "adapter"))
    assert max(tokenizer.get_vocab().values()) < model.get_input_embeddings().num_embeddings
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(reloaded(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_on_an_adapter(base, tmp_path):
    write_adapter(base, tmp_path / "first", target_modules=["q_proj", "lm_head"])
    merge_adapter(str(tmp_path / "first"), tmp_path / "merged")
    hf.AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "merged")
    ids, expected = write_adapter(tmp_path / "merged", tmp_path / "second")
    config = json.loads((tmp_path / "second" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "first")
    (tmp_path / "second" / "adapter_config.json").write_text(json.dumps(config))
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(tmp_path / "second"))(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_older_names_of_a_fully_trained_module(base, tmp_path):
    ids, expected = write_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    change(tmp_path / "adapter", lambda key: key.replace("lm_head.weight", "lm_head.modules_to_save.weight"))
    with torch.no_grad():
        torch.testing.assert_close(load_model(str(tmp_path / "adapter"))(ids).logits, expected, rtol=1e-5, atol=1e-5)


def test_an_adapter_without_a_tokenizer_uses_its_bases(base, tmp_path):
    write_adapter(base, tmp_path / "adapter", tokenizer=False)
    base_tokenizer, adapter_tokenizer = load_tokenizer(str(base)), load_tokenizer(str(tmp_path / "adapter"))
    assert adapter_tokenizer.get_vocab() == base_tokenizer.get_vocab()
    merge_adapter(str(tmp_path / "adapter"), tmp_path / "merged")
    assert load_tokenizer(str(tmp_path / "merged")).get_vocab() == base_tokenizer.get_vocab()


def change(folder, rename=lambda key: key, value=lambda key, tensor: tensor):
    """Rename an adapter's weights, or change them."""
    file = folder / "adapter_model.safetensors"
    weights = {rename(key): value(key, tensor).contiguous() for key, tensor in load_file(file).items()}
    save_file({key: tensor for key, tensor in weights.items() if key}, file)


class TestRefused:
    def test_weights_that_the_model_does_not_have(self, base, tmp_path):
        write_adapter(base, tmp_path / "adapter")
        change(tmp_path / "adapter", lambda key: key.replace("layers.1.self_attn.v_proj", "layers.7.self_attn.v_proj"))
        with pytest.raises(ModelError, match=r"does not have; the first is .*layers\.7\.self_attn\.v_proj\.lora_A"):
            load_model(str(tmp_path / "adapter"))

    def test_weights_that_are_not_in_its_file(self, base, tmp_path):
        write_adapter(base, tmp_path / "adapter")
        change(tmp_path / "adapter", lambda key: "" if "layers.1.self_attn.v_proj.lora_B" in key else key)
        with pytest.raises(ModelError, match=r"not in its file; the first is .*layers\.1\.self_attn\.v_proj\.lora_B"):
            load_model(str(tmp_path / "adapter"))

    def test_a_fully_trained_module_that_is_not_in_its_file(self, base, tmp_path):
        write_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
        change(tmp_path / "adapter", lambda key: "" if "lm_head" in key else key)
        with pytest.raises(ModelError, match=r"not in its file; the first is base_model\.model\.lm_head\.weight"):
            load_model(str(tmp_path / "adapter"))

    def test_the_error_has_pefts_whole_reason(self, base, tmp_path):
        """PEFT's error has a line for each weight."""
        write_adapter(base, tmp_path / "adapter")
        change(tmp_path / "adapter", value=lambda key, tensor: tensor[:, :-1] if "lora_A" in key else tensor)
        with pytest.raises(ModelError) as error:
            load_model(str(tmp_path / "adapter"))
        assert error.value.what.count("size mismatch for") == 4
        assert "\n" not in error.value.what

    def test_rows_in_no_file_are_refused(self, base, tmp_path):
        """PEFT writes no embedding for a vocabulary grown by an offset of its tokens alone."""
        write_adapter(base, tmp_path / "adapter", grown=True, trainable_token_indices=[24, 26])
        change(tmp_path / "adapter", lambda key: "" if "base_layer" in key else key)
        with pytest.raises(ModelError, match=r"trained with 2[78] tokens, its base model has 25"):
            load_model(str(tmp_path / "adapter"))

    def test_an_adapter_of_prompts(self, base, tmp_path):
        from peft import PromptTuningConfig

        model = hf.AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(model, PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).save_pretrained(
            tmp_path / "adapter"
        )
        with pytest.raises(ModelError, match="PROMPT_TUNING adapter"):
            load_model(str(tmp_path / "adapter"))

    @pytest.mark.parametrize("name", [None, ""])
    def test_an_adapter_without_a_base(self, base, tmp_path, name):
        write_adapter(base, tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": name}))
        with pytest.raises(ModelError, match="does not say which model"):
            load_model(str(tmp_path / "adapter"))

    def test_biases_without_a_setting_are_refused(self, tiny_model, tmp_path):
        config = hf.Gemma2Config(
            vocab_size=27, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        )  # fmt: skip
        hf.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "base")
        hf.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
        write_adapter(tmp_path / "base", tmp_path / "adapter", lora_bias=True, target_modules=["gate_proj"])
        with pytest.raises(ModelError, match="lora_bias"):
            load_model(str(tmp_path / "adapter"))


def test_modules_trained_alike_stay_tied(tiny_model, tmp_path):
    """Individually trained tokens change both modules alike; a reward model has no output head to tie or untie."""
    write_adapter(tiny_model, tmp_path / "tokens", trainable_token_indices=[5, 9])
    merged = load_model(str(tmp_path / "tokens"))
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert merged.config.tie_word_embeddings
    write_adapter(tiny_model, tmp_path / "embedding", target_modules=["embed_tokens"])
    reward = start_reward_model(str(tmp_path / "embedding"))
    assert reward.config.tie_word_embeddings
    expected = load_model(str(tmp_path / "embedding")).model.embed_tokens.weight
    assert torch.equal(reward.model.embed_tokens.weight, expected)


def test_a_head_of_a_language_models_adapter_is_left_out_of_a_reward_model(tiny_model, tmp_path):
    write_adapter(tiny_model, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    weight = "model.layers.1.self_attn.q_proj.weight"
    reward, language = start_reward_model(str(tmp_path / "adapter")), load_model(str(tmp_path / "adapter"))
    assert torch.equal(reward.get_parameter(weight), language.get_parameter(weight))
