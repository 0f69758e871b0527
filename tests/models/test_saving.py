"""Saved models: every tensor of the checkpoint's files under its name, those that are not trained bit for bit."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as hf

from penchant.errors import ModelError
from penchant.models.loading import load_model
from penchant.models.saving import save_model
from penchant.models.source_checkpoint import checkpoint_of

IDS = torch.tensor([[1, 5, 9, 20, 7, 11, 4, 6, 8, 12]])


@pytest.mark.parametrize("family", ["qwen3_5", "gemma3", "gemma4", "mistral3", "qwen2_5_vl", "llava"])
def test_all_but_the_language_part_is_written_bit_for_bit(family, multimodal_folder, tmp_path, multimodal_models):
    folder = multimodal_folder(family)
    model = load_model(str(folder))
    multimodal_models.change(model)
    save_model(model, tmp_path)
    base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(tmp_path)
    trained = {name for name in base_tensors if not multimodal_models.in_tower(name) and "layer_scalar" not in name}
    assert multimodal_models.changed_tensors(base_tensors, saved_tensors) == trained
    assert sorted(file.name for file in tmp_path.glob("model*")) == sorted(file.name for file in folder.glob("model*"))
    reloaded = multimodal_models.original(tmp_path)
    with torch.no_grad():
        expected = model.eval()(input_ids=IDS).logits
        torch.testing.assert_close(reloaded(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == json.loads((folder / "config.json").read_text())["architectures"]
    assert (config["dtype"], config["vision_config"]["dtype"]) == ("float32", "bfloat16")


class TestNames:
    @pytest.mark.parametrize("family", ["gemma3", "mistral3", "qwen2_5_vl", "llava"])
    def test_names_of_the_module_tree_stay_too(self, family, tiny_model, tmp_path, multimodal_models):
        """Early checkpoints of these families name the weights otherwise than the classes do; both kinds are in use."""
        multimodal_models.write_multimodal(
            family, tmp_path / "new", tiny_model, shards=False, save_original_format=False
        )
        base_tensors = multimodal_models.read_tensors(tmp_path / "new")
        assert any(name.startswith("model.language_model.layers.") for name in base_tensors)
        model = load_model(str(tmp_path / "new"))
        multimodal_models.change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert multimodal_models.changed_tensors(base_tensors, saved_tensors) == {
            name for name in base_tensors if not multimodal_models.in_tower(name)
        }

    @pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
    def test_a_tied_head_that_the_files_hold_twice(self, family, tiny_model, tmp_path, multimodal_models):
        folder = tmp_path / "twice"
        multimodal_models.write_multimodal(family, folder, tiny_model, shards=False)
        embedding = next(n for n in multimodal_models.read_tensors(folder) if n.endswith("embed_tokens.weight"))
        head = "language_model.lm_head.weight" if family == "gemma3" else "lm_head.weight"
        multimodal_models.add_tensors(folder, {head: multimodal_models.read_tensors(folder)[embedding].clone()})
        model = load_model(str(folder))
        multimodal_models.change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert saved_tensors.keys() == multimodal_models.read_tensors(folder).keys()
        assert torch.equal(saved_tensors[head], saved_tensors[embedding])
        assert torch.equal(saved_tensors[head], model.get_input_embeddings().weight)

    @pytest.mark.parametrize("family", ["gemma3", "gemma4", "qwen2_5_vl"])
    def test_a_head_that_is_not_tied_any_more(self, family, multimodal_folder, tmp_path, multimodal_models):
        """The state after merging an adapter of one of two tied modules: the files get an additional tensor."""
        model = load_model(str(multimodal_folder(family)))
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.5)
        model.all_tied_weights_keys.pop("lm_head.weight")
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
        save_model(model, tmp_path)
        new = multimodal_models.read_tensors(tmp_path).keys() - multimodal_models.read_tensors(
            multimodal_folder(family)
        )
        assert {name.removeprefix("language_model.") for name in new} == {"lm_head.weight"}
        with torch.no_grad():
            expected = model.eval()(input_ids=IDS).logits
            torch.testing.assert_close(
                multimodal_models.original(tmp_path)(input_ids=IDS).logits, expected, rtol=0, atol=1e-6
            )
            torch.testing.assert_close(load_model(str(tmp_path))(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)

    def test_weights_in_torchs_own_format(self, tiny_model, tmp_path, multimodal_models):
        folder = tmp_path / "torch"
        multimodal_models.write_multimodal("llava", folder, tiny_model, shards=False)
        base_tensors = multimodal_models.read_tensors(folder)
        torch.save(base_tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        model = load_model(str(folder))
        multimodal_models.change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert multimodal_models.changed_tensors(base_tensors, saved_tensors) == {
            name for name in base_tensors if not multimodal_models.in_tower(name)
        }

    def test_experts_that_are_joined_on_loading(self, tmp_path, multimodal_models):
        """The files hold one tensor for each expert, the model one for all."""
        torch.manual_seed(0)
        config = hf.Qwen3MoeConfig(
            vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, num_experts=3, num_experts_per_tok=2, moe_intermediate_size=8,
            unused_weights=["extra"],
        )  # fmt: skip
        hf.Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "model")
        multimodal_models.add_tensors(tmp_path / "model", {"extra": torch.ones(3)})
        base_tensors = multimodal_models.read_tensors(tmp_path / "model")
        assert "model.layers.0.mlp.experts.2.up_proj.weight" in base_tensors
        model = load_model(str(tmp_path / "model"))
        multimodal_models.change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert multimodal_models.changed_tensors(base_tensors, saved_tensors) == base_tensors.keys() - {"extra"}
        for name, tensor in base_tensors.items():
            torch.testing.assert_close(saved_tensors[name], tensor if name == "extra" else tensor + 0.01)

    def test_files_that_changed_since_loading(self, tiny_model, tmp_path, multimodal_models):
        multimodal_models.write_multimodal("llava", tmp_path / "base", tiny_model)
        model = load_model(str(tmp_path / "base"))
        multimodal_models.add_tensors(tmp_path / "base", {"later": torch.ones(1)})
        with pytest.raises(ModelError, match="changed since it was loaded"):
            save_model(model, tmp_path / "saved")


class TestUnused:
    @pytest.fixture
    def stray(self, tiny_model, tmp_path, multimodal_models):
        """A text model with a tensor of something else in its file."""
        folder = shutil.copytree(tiny_model, tmp_path / "stray")
        multimodal_models.add_tensors(folder, {"v_head.summary.weight": torch.ones(1, 32)})
        return folder

    def test_a_stray_tensor_is_refused_by_name(self, stray):
        with pytest.raises(
            ModelError, match=r"no weights of a LlamaForCausalLM; the first is v_head\.summary\.weight"
        ) as e:
            load_model(str(stray))
        assert '"unused_weights": ["v_head.summary.weight"]' in e.value.fix

    @pytest.mark.parametrize("pattern", ["v_head.summary.weight", "v_head.*"])
    def test_a_named_stray_tensor_is_kept(self, stray, tmp_path, pattern, multimodal_models):
        config = json.loads((stray / "config.json").read_text())
        (stray / "config.json").write_text(json.dumps({**config, "unused_weights": [pattern]}))
        model = load_model(str(stray))
        multimodal_models.change(model)
        assert "v_head (1)" in checkpoint_of(model).notice
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert torch.equal(saved_tensors["v_head.summary.weight"], torch.ones(1, 32))
        reloaded = load_model(str(tmp_path / "saved"))  # what is saved names it still
        torch.testing.assert_close(reloaded(IDS).logits, model(IDS).logits)

    def test_a_stray_beside_a_tower(self, tiny_model, tmp_path, multimodal_models):
        multimodal_models.write_multimodal("gemma3", tmp_path / "base", tiny_model)
        multimodal_models.add_tensors(tmp_path / "base", {"language_model.model.layers.0.extra.weight": torch.ones(2)})
        with pytest.raises(ModelError, match=r"Gemma3ForConditionalGeneration; the first is .*extra\.weight"):
            load_model(str(tmp_path / "base"))

    def test_what_transformers_ignores_is_kept_in_a_text_model(self, tmp_path, multimodal_models, multimodal_folder):
        config = hf.AutoConfig.from_pretrained(multimodal_folder("qwen3_5")).text_config
        hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "text")
        multimodal_models.add_tensors(tmp_path / "text", {"mtp.fc.weight": torch.ones(2, 2)})
        model = load_model(str(tmp_path / "text"))
        assert checkpoint_of(model).notice.endswith("mtp (1)")
        save_model(model, tmp_path / "saved")
        assert "mtp.fc.weight" in multimodal_models.read_tensors(tmp_path / "saved")

    def test_old_buffers_are_no_strays(self, tmp_path, multimodal_models):
        config = hf.GPT2Config(vocab_size=61, n_embd=32, n_layer=1, n_head=2, n_positions=16)
        hf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        multimodal_models.add_tensors(tmp_path / "gpt2", {"transformer.h.0.attn.masked_bias": torch.ones(())})
        load_model(str(tmp_path / "gpt2"))

    def test_a_text_model_without_stray_tensors_is_saved_by_transformers(self, tiny_model, tmp_path):
        model = load_model(str(tiny_model))
        assert checkpoint_of(model).notice is None
        save_model(model, tmp_path)
        assert (tmp_path / "model.safetensors").exists()
