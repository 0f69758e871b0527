"""Models from folders: dropout is off, context lengths are read, defects are named."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers as hf

from penchant.errors import ModelError
from penchant.models.loading import (
    adapter_base,
    check_vocabulary,
    context_length,
    dropout_settings,
    load_config,
    load_model,
    load_tokenizer,
)
from penchant.models.lora import merge_adapter


@pytest.fixture
def gpt2(tmp_path, tiny_model):
    """A GPT-2 folder whose configuration asks for dropout everywhere."""
    folder = tmp_path / "gpt2"
    config = hf.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=48, attn_pdrop=0.3, resid_pdrop=0.2, embd_pdrop=0.1
    )
    torch.manual_seed(0)
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(tmp_path, tiny_model):
    """A LoRA adapter with weights that are not the identity, and the logits of base + adapter."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = hf.AutoModelForCausalLM.from_pretrained(tiny_model)
    model = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    hf.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    with torch.no_grad():
        return folder, model(torch.tensor([[4, 5, 6, 7]])).logits


class TestDropout:
    def test_a_trained_model_with_dropout_gives_the_same_twice(self, gpt2):
        plain = hf.AutoModelForCausalLM.from_pretrained(gpt2).train()
        ids = torch.arange(3, 30)[None]
        assert not torch.equal(plain(ids).logits, plain(ids).logits)  # so it does drop
        ours = load_model(str(gpt2)).train()
        assert torch.equal(ours(ids).logits, ours(ids).logits)
        torch.testing.assert_close(ours(ids).logits, plain.eval()(ids).logits)

    def test_settings_are_listed(self, gpt2):
        settings = dropout_settings(load_config(str(gpt2)))
        assert "attn_pdrop 0.3" in settings
        assert "resid_pdrop 0.2" in settings
        assert "embd_pdrop 0.1" in settings

    def test_no_dropout_gives_an_empty_text(self, tiny_model):
        assert dropout_settings(load_config(str(tiny_model))) == ""


class TestContext:
    @pytest.mark.parametrize(
        ("config", "tokens"),
        [
            (hf.LlamaConfig(max_position_embeddings=77), 77),
            (hf.GPT2Config(n_positions=48), 48),
            (hf.BloomConfig(), None),
            (hf.MambaConfig(), None),
        ],
    )
    def test_the_length_is_the_configurations(self, config, tokens):
        assert context_length(config) == tokens


class TestAdapter:
    def test_it_is_merged_and_every_weight_can_be_trained(self, adapter, tiny_model):
        folder, logits = adapter
        assert adapter_base(str(folder)) == str(tiny_model)
        model = load_model(str(folder))
        torch.testing.assert_close(model(torch.tensor([[4, 5, 6, 7]])).logits, logits, rtol=1e-5, atol=1e-5)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert not any("lora" in name for name, _ in model.named_parameters())

    def test_merging_writes_an_ordinary_model(self, adapter, tmp_path):
        folder, logits = adapter
        merge_adapter(str(folder), tmp_path / "merged")
        alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(alone(torch.tensor([[4, 5, 6, 7]])).logits, logits, rtol=1e-5, atol=1e-5)
        assert not list(tmp_path.glob(".writing*"))

    def test_merging_into_an_existing_folder_is_refused(self, adapter, tmp_path):
        with pytest.raises(ModelError, match="there already"):
            merge_adapter(str(adapter[0]), tmp_path)

    def test_an_ordinary_folder_is_no_adapter(self, tiny_model, tmp_path):
        assert adapter_base(str(tiny_model)) is None
        with pytest.raises(ModelError, match=r"no adapter_config\.json"):
            merge_adapter(str(tiny_model), tmp_path / "merged")

    def test_an_adapter_without_its_base(self, adapter):
        file = adapter[0] / "adapter_config.json"
        file.write_text(json.dumps({"peft_type": "LORA"}))
        with pytest.raises(ModelError, match="does not say which model"):
            load_model(str(adapter[0]))


class TestDefects:
    @pytest.fixture
    def copy(self, tmp_path, tiny_model):
        return shutil.copytree(tiny_model, tmp_path / "copy")

    def test_weights_of_another_shape(self, copy):
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))
        with pytest.raises(ModelError, match="weights are not in the model's files, or of another shape"):
            load_model(str(copy))

    def test_no_weights(self, copy):
        for file in copy.glob("*.safetensors"):
            file.unlink()
        with pytest.raises(ModelError, match="no weights"):
            load_model(str(copy))

    def test_cut_weights(self, copy):
        (file,) = copy.glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_model(str(copy))

    def test_no_tokenizer(self, copy):
        for file in copy.glob("tokenizer*"):
            file.unlink()
        with pytest.raises(ModelError, match="has no tokenizer"):
            load_tokenizer(str(copy))

    def test_a_tokenizer_with_more_tokens_than_the_model(self, copy):
        tokenizer = load_tokenizer(str(copy))
        tokenizer.add_tokens(["<new>"])
        with pytest.raises(ModelError, match="embedding has"):
            check_vocabulary(load_model(str(copy)), tokenizer, str(copy))

    @pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "nowhere"])
    def test_no_such_folder(self, source):
        with pytest.raises(ModelError, match="no such folder"):
            load_model(source)

    def test_a_hub_id_that_is_not_given(self):
        with pytest.raises(ModelError, match="the model hub did not give it"):
            load_model("no-such-organisation/no-such-model")
