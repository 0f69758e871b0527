"""Reward models: the tree against the library's own forward, and folders that load anywhere."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf

from penchant.config.run import load_config
from penchant.config.shared_sections import RewardConfig
from penchant.data.trees import pack
from penchant.engine.reward_scorers import PaddedRewardScorer, TreeRewardScorer, padded_rewards
from penchant.engine.scorer_choice import choose_reward_scorer
from penchant.errors import ModelError
from penchant.evaluation.rewards import open_reward
from penchant.models.loading import load_tokenizer
from penchant.models.reward_model import load_reward_model, start_reward_model
from penchant.training.report import write_run_report
from penchant.training.run import train

COMMON = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
CONFIGS = {
    "llama": hf.LlamaConfig(**COMMON, intermediate_size=48, num_key_value_heads=2, num_labels=1),
    "qwen2": hf.Qwen2Config(**COMMON, intermediate_size=48, num_key_value_heads=2, num_labels=1),
    "gpt-neox": hf.GPTNeoXConfig(**COMMON, intermediate_size=48, num_labels=1),
    "gpt2": hf.GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, pad_token_id=0, num_labels=1),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tree_equals_the_librarys_forward(make_groups, name):
    """Rewards and gradients, each sequence alone and unpadded."""
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(CONFIGS[name]).eval()
    groups = make_groups([(7, (4, 2, 9)), (3, (5, 1)), (12, (6,))], 0)
    choice = choose_reward_scorer(model, groups[:2])
    assert isinstance(choice.scorer, TreeRewardScorer)
    assert choice.notice is None
    rewards = choice.scorer(pack(groups))
    weights = torch.linspace(1, 2, rewards.numel()).view_as(rewards)
    (rewards * weights).sum().backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")
    total = torch.zeros(())
    for g, group in enumerate(groups):
        for k, response in enumerate(group.responses):
            ids = torch.from_numpy(np.concatenate([group.prompt, response]))[None]
            reward = model(ids).logits[0, 0]
            assert float(rewards[g, k].detach()) == pytest.approx(float(reward.detach()), rel=1e-4, abs=1e-6)
            total = total + reward * weights[g, k]
    total.backward()
    for n, p in model.named_parameters():
        if p.grad is not None and p.grad.norm() > 1e-6:
            assert (ours[n] - p.grad).norm() / p.grad.norm() < 1e-3, n


def test_padded_equals_the_tree(make_groups):
    torch.manual_seed(0)
    model = hf.AutoModelForSequenceClassification.from_config(CONFIGS["llama"]).eval()
    groups = make_groups([(7, (4, 2, 9)), (3, (5, 1))], 0)
    tree = choose_reward_scorer(model, groups).scorer(pack(groups))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(PaddedRewardScorer(model)(pack(groups)), tree, rtol=1e-4, atol=1e-6)


def test_padded_rewards_are_those_of_single_sequences():
    """Of a causal and a bidirectional classifier with three outputs; rows are padded with token 0, which is no pad."""
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_labels": 3}
    sequences = [torch.arange(3, 3 + n) for n in (9, 2, 5)]
    for config in (hf.BertConfig(**sizes, num_hidden_layers=2), hf.LlamaConfig(**sizes, num_hidden_layers=2)):
        torch.manual_seed(0)
        model = hf.AutoModelForSequenceClassification.from_config(config).eval()
        expected = [model(ids[None]).logits[0, 2] for ids in sequences]
        rewards = padded_rewards(model, sequences, label=2)
        assert rewards.dtype == torch.float64
        torch.testing.assert_close(rewards.float(), torch.stack(expected), rtol=1e-4, atol=1e-6)


class TestStarting:
    def test_a_fresh_head_is_a_function_of_the_seed(self, tiny_model):
        heads = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            heads.append(start_reward_model(str(tiny_model)).score.weight.detach())
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])

    def test_a_reward_model_keeps_its_head(self, tiny_model, tmp_path):
        torch.manual_seed(1)
        model = start_reward_model(str(tiny_model))
        model.save_pretrained(tmp_path)
        assert torch.equal(start_reward_model(str(tmp_path)).score.weight, model.score.weight)

    def test_a_language_model_is_no_reward_model(self, tiny_model):
        with pytest.raises(ModelError, match=r"score\.weight"):
            load_reward_model(str(tiny_model))


class TestRuns:
    @pytest.fixture
    def train_run(self, write_config):
        def go(**sections):
            training = {"max_steps": 30, "batch_size": 12, "learning_rate": 3e-3, "schedule": "constant"}
            sections = {"objective": {"name": "bradley_terry"}, "training": training, **sections}
            return train(load_config(write_config(**sections)))

        return go

    def test_it_learns_and_is_a_model_like_any_other(self, train_run, tiny_model):
        folder = train_run()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines[-1]["eval_rewards/accuracies"] > 0.8
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = load_tokenizer(str(folder))
        ids = [*tokenizer("the old cat sees a dog").input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            expected = float(model(torch.tensor([ids])).logits[0, 0])
        reward = open_reward(RewardConfig(model=str(folder)), device=torch.device("cpu"))
        assert reward(["the old cat"], [[" sees a dog"]])[0][0] == pytest.approx(expected, rel=1e-5)
        result = write_run_report(folder)
        assert result.reward_accuracy.value == pytest.approx(lines[-1]["eval_rewards/accuracies"])
        assert "Held-out reward accuracy" in (folder / "report.html").read_text()

    @pytest.mark.slow
    def test_adapters_bring_their_head(self, train_run):
        folder = train_run(lora={"rank": 4})
        assert (folder / "adapter_model.safetensors").exists()
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert write_run_report(folder).reward_accuracy.value == pytest.approx(lines[-1]["eval_rewards/accuracies"])

    @pytest.mark.slow_but("True")
    @pytest.mark.parametrize("freeze", [True, False])
    def test_a_head_beside_its_model(self, write_config, tiny_model, freeze):
        """The saved head orders the held-out pairs as in training; a frozen model is unchanged."""
        from penchant.models.preference_head import load_head

        file = write_config(
            objective={"name": "preference_head"},
            head={"pooling": "tanh", "freeze_backbone": freeze},
            training={"max_steps": 30, "batch_size": 12, "learning_rate": 3e-3},
        )
        folder = train(load_config(file))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert write_run_report(folder).reward_accuracy.value == pytest.approx(lines[-1]["eval_head/accuracies"])
        assert load_head(folder).settings["pooling"] == "tanh"
        old_weights, new_weights = (
            hf.AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (tiny_model, folder)
        )
        assert all(torch.equal(old_weights[name], new_weights[name]) for name in old_weights) == freeze
