"""Multimodal checkpoints: the language part is what is trained, and nothing else of the files is changed or lost."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers as hf

from penchant.data.trees import pack
from penchant.engine.checkpoint import checkpoint_of, keep_language_part
from penchant.engine.distribution import World
from penchant.engine.loading import context_length, load_config, load_model, load_tokenizer
from penchant.engine.merging import merge_adapter
from penchant.engine.padded import PaddedScorer
from penchant.engine.policy import Policy
from penchant.engine.reward_model import load_reward_model, start_reward_model
from penchant.engine.sampling import Sampling, sample
from penchant.engine.saving import save_model
from penchant.engine.scoring import choose_scorer
from penchant.engine.tree import TreeScorer
from penchant.errors import ModelError

FAMILIES = ["qwen3_5", "gemma3", "gemma4", "mistral3", "qwen2_5_vl", "llava"]
IDS = torch.tensor([[1, 5, 9, 20, 7, 11, 4, 6, 8, 12]])
SINGLE = World(0, 1, torch.device("cpu"))
TOWERS = ("visual", "vision", "projector", "mtp")


@pytest.fixture(params=FAMILIES)
def folder(request, multimodal_folder):
    return multimodal_folder(request.param)


def original(folder, **settings):
    """The checkpoint by transformers alone."""
    return hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, **settings).eval()


def in_tower(name):
    return any(part in name for part in TOWERS)


def towers(tensors):
    return {name: tensor for name, tensor in tensors.items() if in_tower(name)}


def change(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01


def changed(base_tensors, saved_tensors):
    """Names of tensors that are not the same bits."""

    def bits(tensor):
        return tensor.dtype, tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()

    assert base_tensors.keys() == saved_tensors.keys()
    return {name for name in base_tensors if bits(base_tensors[name]) != bits(saved_tensors[name])}


def test_it_is_read_by_its_own_class_without_its_towers(folder):
    model, full_model = load_model(str(folder)), original(folder)
    assert (
        type(model).__name__
        == type(full_model).__name__
        == json.loads((folder / "config.json").read_text())["architectures"][0]
    )
    assert not [name for name, _ in model.named_parameters() if in_tower(name)]
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


def test_a_quantised_one_is_refused(multimodal_folder):
    folder = multimodal_folder("gemma3")
    model = original(folder)
    model.hf_quantizer = object()
    with pytest.raises(ModelError, match="is quantised; its language part cannot be saved beside its towers"):
        keep_language_part(model, str(folder))


def test_all_but_the_language_part_is_written_bit_for_bit(folder, tmp_path, multimodal_models):
    model = load_model(str(folder))
    change(model)
    save_model(model, tmp_path)
    base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(tmp_path)
    trained = {name for name in base_tensors if not in_tower(name) and "layer_scalar" not in name}
    assert changed(base_tensors, saved_tensors) == trained
    assert sorted(file.name for file in tmp_path.glob("model*")) == sorted(file.name for file in folder.glob("model*"))
    reloaded = original(tmp_path)
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
        """Early checkpoints of these families call the weights otherwise than the classes do; both kinds are about."""
        multimodal_models.write_multimodal(
            family, tmp_path / "new", tiny_model, shards=False, save_original_format=False
        )
        base_tensors = multimodal_models.read_tensors(tmp_path / "new")
        assert any(name.startswith("model.language_model.layers.") for name in base_tensors)
        model = load_model(str(tmp_path / "new"))
        change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert changed(base_tensors, saved_tensors) == {name for name in base_tensors if not in_tower(name)}

    @pytest.mark.parametrize("family", ["gemma3", "qwen2_5_vl"])
    def test_a_tied_head_that_the_files_hold_twice(self, family, tiny_model, tmp_path, multimodal_models):
        folder = tmp_path / "twice"
        multimodal_models.write_multimodal(family, folder, tiny_model, shards=False)
        embedding = next(n for n in multimodal_models.read_tensors(folder) if n.endswith("embed_tokens.weight"))
        head = "language_model.lm_head.weight" if family == "gemma3" else "lm_head.weight"
        multimodal_models.add_tensors(folder, {head: multimodal_models.read_tensors(folder)[embedding].clone()})
        model = load_model(str(folder))
        change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert saved_tensors.keys() == multimodal_models.read_tensors(folder).keys()
        assert torch.equal(saved_tensors[head], saved_tensors[embedding])
        assert torch.equal(saved_tensors[head], model.get_input_embeddings().weight)

    @pytest.mark.parametrize("family", ["gemma3", "gemma4", "qwen2_5_vl"])
    def test_a_head_that_is_not_tied_any_more(self, family, multimodal_folder, tmp_path, multimodal_models):
        """As merging an adapter of one of two tied modules leaves it: the files get a tensor more."""
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
            torch.testing.assert_close(original(tmp_path)(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)
            torch.testing.assert_close(load_model(str(tmp_path))(input_ids=IDS).logits, expected, rtol=0, atol=1e-6)

    def test_weights_in_torchs_own_format(self, tiny_model, tmp_path, multimodal_models):
        folder = tmp_path / "torch"
        multimodal_models.write_multimodal("llava", folder, tiny_model, shards=False)
        base_tensors = multimodal_models.read_tensors(folder)
        torch.save(base_tensors, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        model = load_model(str(folder))
        change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert changed(base_tensors, saved_tensors) == {name for name in base_tensors if not in_tower(name)}

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
        change(model)
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert changed(base_tensors, saved_tensors) == base_tensors.keys() - {"extra"}
        for name, tensor in base_tensors.items():
            torch.testing.assert_close(saved_tensors[name], tensor if name == "extra" else tensor + 0.01)

    def test_files_that_were_changed_meanwhile(self, tiny_model, tmp_path, multimodal_models):
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
    def test_the_remedy_keeps_it(self, stray, tmp_path, pattern, multimodal_models):
        config = json.loads((stray / "config.json").read_text())
        (stray / "config.json").write_text(json.dumps({**config, "unused_weights": [pattern]}))
        model = load_model(str(stray))
        change(model)
        assert "v_head (1)" in checkpoint_of(model).notice
        save_model(model, tmp_path / "saved")
        saved_tensors = multimodal_models.read_tensors(tmp_path / "saved")
        assert torch.equal(saved_tensors["v_head.summary.weight"], torch.ones(1, 32))
        again = load_model(str(tmp_path / "saved"))  # what is saved names it still
        torch.testing.assert_close(again(IDS).logits, model(IDS).logits)

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

    def test_a_text_model_without_any_is_saved_as_before(self, tiny_model, tmp_path):
        model = load_model(str(tiny_model))
        assert checkpoint_of(model).notice is None
        save_model(model, tmp_path)
        assert (tmp_path / "model.safetensors").exists()


class TestAdapters:
    @pytest.mark.parametrize(
        "targets",
        ["all-linear", ["q_proj", "o_proj"], ["up_proj", "lm_head"], r".*\.layers\.1\..*(k_proj|up_proj|out_proj)"],
    )
    def test_peft_puts_them_on_the_original_class(self, folder, tmp_path, targets):
        from peft import PeftModel

        policy = Policy(load_model(str(folder)), load_tokenizer(str(folder)))
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=targets)
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        policy.save(tmp_path, TreeScorer(policy.model), SINGLE, torch.float32)
        reloaded = PeftModel.from_pretrained(original(folder), tmp_path).eval()
        adapted = {name for name, _ in reloaded.named_modules() if name.endswith("lora_A")}
        assert adapted
        assert not [name for name in adapted if in_tower(name)]
        with torch.no_grad():
            logits = reloaded(input_ids=IDS).logits
            ours = policy.model.eval()(input_ids=IDS).logits
            merged = load_model(str(tmp_path)).eval()(input_ids=IDS).logits
            bare = original(folder)(input_ids=IDS).logits
        assert not torch.allclose(logits, bare, atol=1e-2)
        torch.testing.assert_close(ours, logits, rtol=0, atol=1e-5)
        torch.testing.assert_close(merged, logits, rtol=0, atol=1e-5)

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
        assert not changed(towers(base_tensors), towers(saved_tensors))
        with torch.no_grad():
            reloaded = original(tmp_path / "merged")(input_ids=IDS).logits
            torch.testing.assert_close(reloaded, policy.model.eval()(input_ids=IDS).logits, rtol=0, atol=1e-5)
        assert (tmp_path / "merged" / "preprocessor_config.json").exists()

    def test_an_adapter_of_a_tower_is_refused(self, multimodal_folder, tmp_path):
        from peft import LoraConfig, get_peft_model

        adapted = get_peft_model(original(multimodal_folder("gemma3")), LoraConfig(target_modules=["q_proj"]))
        adapted.save_pretrained(tmp_path)
        with pytest.raises(ModelError, match=r"outside the language part, the first is .*vision_tower.*q_proj"):
            load_model(str(tmp_path))


class TestScoring:
    @pytest.mark.parametrize("family", [family for family in FAMILIES if family != "qwen3_5"])
    def test_the_tree_is_exact_for_the_language_part(self, family, multimodal_folder, make_groups):
        folder = multimodal_folder(family)
        groups = make_groups([(9, (4, 6, 3)), (5, (7, 2))])
        choice = choose_scorer(load_model(str(folder)), groups)
        assert isinstance(choice.scorer, TreeScorer), choice.notice
        batch = pack(groups)
        with torch.no_grad():
            torch.testing.assert_close(
                choice.scorer(batch), PaddedScorer(original(folder))(batch), rtol=1e-5, atol=1e-4
            )

    def test_linear_attention_is_run_padded(self, multimodal_folder, make_groups):
        folder = multimodal_folder("qwen3_5")
        groups = make_groups([(9, (4, 6, 3)), (5, (7, 2))])
        choice = choose_scorer(load_model(str(folder)), groups)
        assert "Qwen3_5ForConditionalGeneration is run padded" in choice.notice
        with torch.no_grad():
            expected = PaddedScorer(original(folder))(pack(groups))
            torch.testing.assert_close(choice.scorer(pack(groups)), expected, rtol=1e-5, atol=1e-5)

    def test_samples_are_transformers(self, folder):
        prompts = [np.array([5, 6, 7, 8, 9]), np.array([7, 9]), np.array([4, 4, 11])]
        model, full_model = load_model(str(folder)), original(folder)
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
        change(model)
        save_model(model, tmp_path)
        base_tensors, saved_tensors = multimodal_models.read_tensors(folder), multimodal_models.read_tensors(tmp_path)
        assert saved_tensors.keys() - base_tensors.keys() == {"score.weight"}
        assert {name.rpartition(".")[0] for name in base_tensors.keys() - saved_tensors.keys()} <= {"lm_head"}
        assert not changed(towers(base_tensors), towers(saved_tensors))
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
