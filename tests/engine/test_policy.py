"""The folder of a trained model: complete, in its dtype, tied weights once."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from safetensors import safe_open

from penchant.engine.distributed import World
from penchant.engine.policy import Policy
from penchant.engine.tree import TreeScorer
from penchant.errors import ConfigError
from penchant.models.loading import load_model, load_tokenizer

ALONE = World(0, 1, torch.device("cpu"))
IDS = torch.tensor([[4, 5, 6, 7, 8]])


@pytest.fixture
def policy(tiny_model) -> Policy:
    policy = Policy(load_model(str(tiny_model)), load_tokenizer(str(tiny_model)))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.01
    return policy


def read_weights(folder):
    (file,) = folder.glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118


def test_the_folder_is_the_model(policy, tmp_path):
    policy.save(tmp_path, TreeScorer(policy.model), ALONE, torch.float32)
    alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(alone(IDS).logits, policy.model(IDS).logits)
    assert (
        hf.AutoTokenizer.from_pretrained(tmp_path)("the old cat").input_ids == policy.tokenizer("the old cat").input_ids
    )
    assert not list(tmp_path.glob(".writing*"))


def test_tied_weights_are_stored_once_and_tied_after(policy, tmp_path):
    policy.save(tmp_path, TreeScorer(policy.model), ALONE, torch.float32)
    assert "model.embed_tokens.weight" in read_weights(tmp_path)
    assert "lm_head.weight" not in read_weights(tmp_path)
    alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert alone.lm_head.weight is alone.model.embed_tokens.weight


def test_bfloat16_weights_are_stored_as_such(policy, tmp_path):
    policy.save(tmp_path, TreeScorer(policy.model), ALONE, torch.bfloat16)
    assert {tensor.dtype for tensor in read_weights(tmp_path).values()} == {torch.bfloat16}
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}  # what is trained stays as it is
    alone = hf.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    torch.testing.assert_close(alone(IDS).logits.float(), policy.model(IDS).logits, rtol=0.05, atol=0.05)


def test_saving_again_replaces(policy, tmp_path):
    policy.save(tmp_path, TreeScorer(policy.model), ALONE, torch.float32)
    with torch.no_grad():
        policy.model.model.norm.weight.mul_(2)
    (tmp_path / ".writing-model").mkdir()  # left by a process that was killed
    (tmp_path / ".writing-model" / "half").write_text("a file")
    policy.save(tmp_path, TreeScorer(policy.model), ALONE, torch.float32)
    assert torch.equal(read_weights(tmp_path)["model.norm.weight"], policy.model.model.norm.weight)
    assert not list(tmp_path.glob(".writing*"))
    assert not (tmp_path / "half").exists()


class TestLora:
    def test_it_starts_as_the_identity_and_trains_little(self, policy):
        logits = policy.model(IDS).logits
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets="all-linear")
        assert torch.equal(policy.model(IDS).logits, logits)
        trained = [name for name, p in policy.model.named_parameters() if p.requires_grad]
        assert trained
        assert all("lora" in name for name in trained)

    def test_the_folder_is_an_adapter(self, policy, tmp_path):
        from peft import PeftModel

        policy.model.save_pretrained(tmp_path / "base")
        base = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
        policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "down_proj"])
        with torch.no_grad():
            for name, parameter in policy.model.named_parameters():
                if "lora_B" in name:
                    parameter += 0.1
        folder = tmp_path / "adapter"
        folder.mkdir()
        policy.save(folder, TreeScorer(policy.model), ALONE, torch.float32)
        assert all("lora" in name for name in read_weights(folder))
        alone = PeftModel.from_pretrained(base, folder)
        torch.testing.assert_close(alone(IDS).logits, policy.model(IDS).logits, rtol=1e-5, atol=1e-6)

    def test_targets_that_are_not_there(self, policy):
        with pytest.raises(ConfigError, match=r"lora\.targets"):
            policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=["nothing_of_that_name"])
        with pytest.raises(ConfigError, match=r"lora\.targets: no module is called v_porj") as error:
            policy.add_lora(rank=2, alpha=4, dropout=0.0, targets=["q_proj", "v_porj"])
        assert "q_proj" in error.value.fix
