"""Multimodal checkpoints: the language part is trained, and nothing else in the files is changed or lost."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf

from penchant.data.trees import pack
from penchant.engine.distributed import World
from penchant.engine.padded import PaddedScorer
from penchant.engine.policy import Policy
from penchant.engine.sampling import Sampling, sample
from penchant.engine.scorer_choice import choose_scorer
from penchant.engine.tree import TreeScorer
from penchant.errors import ModelError
from penchant.models.loading import context_length, load_config, load_model, load_tokenizer
from penchant.models.lora import merge_adapter
from penchant.models.reward_model import load_reward_model, start_reward_model
from penchant.models.saving import save_model
from penchant.models.source_checkpoint import keep_language_part

FAMILIES = ["qwen3_5", "gemma3", "gemma4", "mistral3", "qwen2_5_vl", "llava"]
IDS = torch.tensor([[1, 5, 9, 20, 7, 11, 4, 6, 8, 12]])
SINGLE = World(0, 1, torch.device("cpu"))


@pytest.fixture(params=FAMILIES)
def folder(request, multimodal_folder):
    return multimodal_folder(request.param)


def test_it_is_read_by_its_own_class_without_its_towers(folder, multimodal_models):
    model, full_model = load_model(str(folder)), multimodal_models.original(folder)
    assert (
        type(model).__name__
        == type(full_model).__name__
        == json.loads((folder / "config.json").read_text())["architectures"][0]
    )
    assert not [name for name, _ in model.named_parameters() if multimodal_models.in_tower(name)]
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in full_model.parameters())
    with torch.no_grad():
        expected = full_model(input_ids=IDS).logits
        torch.testing.assert_close(model(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.train()(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
    assert context_length(load_config(str(folder))) == 128


def test_a_model_that_cannot_read_text_without_its_towers_is_refused(tmp_path):
    audio = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    text = {"model_type": "qwen2", "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24}
    config = hf.Qwen2AudioConfig(
        text_config={**text, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1},
        audio_config={**audio, "num_mel_bins": 8, "max_source_positions": 8},
        audio_token_index=60,
    )
    hf.Qwen2AudioForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="a Qwen2AudioForConditionalGeneration needs its towers to read text"):
        load_model(str(tmp_path))


def test_a_quantised_one_is_refused(multimodal_folder, multimodal_models):
    folder = multimodal_folder("gemma3")
    model = multimodal_models.original(folder)
    model.hf_quantizer = object()
    with pytest.raises(ModelError, match="is quantised; its language part cannot be saved beside its towers"):
        keep_language_part(model, str(folder))


class TestAdapters:
    @pytest.mark.slow_but("qwen3_5-all-linear")
    @pytest.mark.parametrize(
        "targets",
        ["all-linear", ["q_proj", "o_proj"], ["up_proj", "lm_head"], r".*\.layers\.1\..*(k_proj|up_proj|out_proj)"],
    )
    def test_peft_puts_them_on_the_original_class(self, folder, tmp_path, targets, multimodal_models):
        from peft import PeftModel

        policy = Policy(load_model(str(folder)), load_tokenizer(str(folder)))
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=targets)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        policy.save(tmp_path, TreeScorer(policy.model), SINGLE, torch.float32)
        reloaded = PeftModel.from_pretrained(multimodal_models.original(folder), tmp_path).eval()
        adapted = {name for name, _ in reloaded.named_modules() if name.endswith("lora_A")}
        assert adapted
        assert not [name for name in adapted if multimodal_models.in_tower(name)]
        with torch.no_grad():
            logits = reloaded(input_ids=IDS).logits
            ours = policy.model.eval()(input_ids=IDS).logits
            merged = load_model(str(tmp_path)).eval()(input_ids=IDS).logits
            bare = multimodal_models.original(folder)(input_ids=IDS).logits
        assert not torch.allclose(logits, bare, atol=1e-2)
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(merged, logits, rtol=0, atol=1e-5)

    @pytest.mark.slow_but("qwen3_5")
    def test_the_merged_folder_is_multimodal(self, folder, tmp_path, multimodal_models):
        policy = Policy(load_model(str(folder)), load_tokenizer(str(folder)))
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "down_proj"])
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        policy.save(tmp_path / "run", TreeScorer(policy.model), SINGLE, torch.float32)
        merge_adapter(str(tmp_path / "run"), tmp_path / "merged", save_dtype="float32")
        base_tensors = multimodal_models.read_tensors(folder)
        saved_tensors = multimodal_models.read_tensors(tmp_path / "merged")
        assert base_tensors.keys() == saved_tensors.keys()
        assert not multimodal_models.changed_tensors(
            multimodal_models.towers(base_tensors), multimodal_models.towers(saved_tensors)
        )
        with torch.no_grad():
            # In float64, so that what is compared is weights and not the rounding of two ways to multiply them.
            reloaded = multimodal_models.original(tmp_path / "merged").double()(input_ids=IDS).logits
            ours = policy.model.double().eval()(input_ids=IDS).logits
            torch.testing.assert_close(reloaded, ours, rtol=0, atol=1e-5)
        assert (tmp_path / "merged" / "preprocessor_config.json").exists()

    def test_an_adapter_of_a_tower_is_refused(self, multimodal_folder, tmp_path, multimodal_models):
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(
            multimodal_models.original(multimodal_folder("gemma3")), LoraConfig(target_modules=["q_proj"])
        )
        adapted.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"outside the language part, the first is .*vision_tower.*q_proj"):
            load_model(str(tmp_path))


class TestScoring:
    @pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_5"])
    def test_the_tree_is_exact_for_the_language_part(self, family, multimodal_folder, make_groups, multimodal_models):
        folder = multimodal_folder(family)
        groups = make_groups([(9, (4, 6, 3)), (5, (7, 2))])
        choice = choose_scorer(load_model(str(folder)), groups)
        assert isinstance(choice.scorer, TreeScorer), choice.notice
        batch = pack(groups)
        with torch.no_grad():
            torch.testing.assert_close(
                choice.scorer(batch), PaddedScorer(multimodal_models.original(folder))(batch), rtol=1e-5, atol=1e-4
            )

    def test_linear_attention_is_run_padded(self, multimodal_folder, make_groups, multimodal_models):
        folder = multimodal_folder("qwen3_5")
        groups = make_groups([(9, (4, 6, 3)), (5, (7, 2))])
        choice = choose_scorer(load_model(str(folder)), groups)
        assert "Qwen3_5ForConditionalGeneration is run padded" in choice.notice
        with torch.no_grad():
            expected = PaddedScorer(multimodal_models.original(folder))(pack(groups))
            torch.testing.assert_close(choice.scorer(pack(groups)), expected, rtol=1e-5, atol=1e-5)

    def test_samples_are_transformers(self, folder, multimodal_models):
        prompts = [np.array([5, 6, 7, 8, 9]), np.array([7, 9]), np.array([4, 4, 11])]
        model, full_model = load_model(str(folder)), multimodal_models.original(folder)
        rows = sample(model, prompts, Sampling(samples=2, max_new_tokens=5, temperature=0.0), ends=[2])
        for prompt, responses in zip(prompts, rows, strict=True):
            ids = torch.from_numpy(prompt)[None]
            generated = full_model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=2)
            expected = generated[0, len(prompt) :].tolist()
            assert [row.ids.tolist() for row in responses] == [expected, expected]

    @pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
    def test_a_reward_model_keeps_the_towers(self, family, multimodal_folder, tmp_path, multimodal_models):
        folder = multimodal_folder(family)
        torch.manual_seed(0)
        model = start_reward_model(str(folder))
        multimodal_models.change(model)
        save_model(model, tmp_path)
        base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(tmp_path)
        assert saved_tensors.keys() - base_tensors.keys() == {"score.weight"}
        assert {name.rpartition(".")[0] for name in base_tensors.keys() - saved_tensors.keys()} <= {"lm_head"}
        assert not multimodal_models.changed_tensors(
            multimodal_models.towers(base_tensors), multimodal_models.towers(saved_tensors)
        )
        reloaded, report = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] | report["unexpected_keys"]
        with torch.no_grad():
            expected = reloaded.eval()(input_ids=IDS).logits
            torch.testing.assert_close(model.eval()(input_ids=IDS).logits, expected)
            torch.testing.assert_close(load_reward_model(str(tmp_path))(input_ids=IDS).logits, expected)

    @pytest.mark.parametrize("family", ["gemma4", "mistral3", "qwen2_5_vl", "llava"])
    def test_a_reward_model_that_could_not_be_loaded_is_refused(self, family, multimodal_folder):
        with pytest.raises(ModelError, match=r"no sequence classifier of a .*ForConditionalGeneration"):
            start_reward_model(str(multimodal_folder(family)))
