"""The best of several samples, by a preference head and by a reward model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from penchant.cli.main import run
from penchant.errors import ModelError
from penchant.evaluation.answering import Sampling, answer
from penchant.evaluation.best_of import BestOf, best_by_head, best_by_reward
from penchant.models.loading import load_tokenizer

PROMPTS = ["the old cat", "it runs"]
SAMPLING = Sampling(samples=5, max_new_tokens=6, seed=1)


def save_classifier(folder: Path, tiny_model: Path, outputs: int = 1) -> Path:
    """A sequence-classification model with random weights."""
    torch.manual_seed(3)
    config = hf.AutoConfig.from_pretrained(tiny_model, num_labels=outputs)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


@pytest.fixture
def reward_model(tmp_path, tiny_model) -> Path:
    return save_classifier(tmp_path / "reward", tiny_model)


def rewards_of(folder: Path, prompt: str, responses, label: int = 0) -> list[float]:
    """Rewards by transformers alone, each row by itself."""
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = load_tokenizer(str(folder))
    rewards = []
    for response in responses:
        ids = [*tokenizer(prompt + response).input_ids, tokenizer.eos_token_id]
        with torch.no_grad():
            rewards.append(float(model(torch.tensor([ids])).logits[0, label]))
    return rewards


class Length:
    name = "length"

    def __call__(self, prompts, responses):
        return [[float(len(response)) for response in candidates] for candidates in responses]


def generate(capsys, *arguments: object) -> list[dict]:
    assert run(["generate", *map(str, arguments), "--max-new-tokens", "6", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["answers"]


def test_the_first_of_the_highest_rewards_is_chosen():
    best = BestOf.choose(["p", "q"], [["a", "b", "c"], ["d", "e", "f"]], [[1.0, 3.0, 3.0], [-1.0, -2.0, -3.0]])
    assert best.answers.responses == (("b",), ("d",))
    assert best.rewards == (3.0, -1.0)
    assert best.to_json()["answers"][0] == {
        "prompt": "p", "responses": ["b"], "reward": 3.0, "rewards_of_all": [1.0, 3.0, 3.0],
    }  # fmt: skip


def test_a_reward_chooses_among_the_samples_of_the_same_seed(tiny_model):
    """The samples are those that `generate --samples` gives; the longest one is chosen."""
    samples = answer(str(tiny_model), PROMPTS, SAMPLING).responses
    best = best_by_reward(str(tiny_model), PROMPTS, SAMPLING, Length())
    assert best.all_rewards == tuple(tuple(float(len(text)) for text in texts) for texts in samples)
    assert best.answers.responses == tuple((max(texts, key=len),) for texts in samples)
    assert any(len(set(row)) > 1 for row in best.all_rewards)


def test_the_head_chooses_the_highest_reward(headed):
    best = best_by_head(str(headed), PROMPTS, SAMPLING)
    samples = answer(str(headed), PROMPTS, SAMPLING).responses
    for (response,), reward, all_rewards, texts in zip(
        best.answers.responses, best.rewards, best.all_rewards, samples, strict=True
    ):
        assert len(all_rewards) == 5
        assert reward == max(all_rewards)
        assert response == texts[all_rewards.index(reward)]
    assert len(set(best.all_rewards[0])) > 1


def test_a_folder_without_a_head(tiny_model):
    with pytest.raises(ModelError, match="no preference head"):
        best_by_head(str(tiny_model), ["x"], Sampling(samples=2))


class TestVerb:
    def test_by_head(self, headed, capsys):
        (row,) = generate(capsys, headed, "the old cat", "--best-of", 3)
        assert row["reward"] == max(row["rewards_of_all"])
        assert len(row["rewards_of_all"]) == 3

    @pytest.mark.parametrize("label", [None, 1])
    def test_by_reward_model(self, label, tiny_model, tmp_path, capsys):
        """The rewards are transformers' own of the samples, and the response is the one of the highest."""
        folder = save_classifier(tmp_path / "reward", tiny_model, outputs=1 if label is None else 2)
        prompts = tmp_path / "prompts.jsonl"
        prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        flags = [] if label is None else ["--label", label]
        rows = generate(capsys, tiny_model, prompts, "--best-of", 4, "--reward", folder, *flags)
        samples = generate(capsys, tiny_model, prompts, "--samples", 4)
        for row, sampled in zip(rows, samples, strict=True):
            expected = rewards_of(folder, row["prompt"], sampled["responses"], label or 0)
            assert row["rewards_of_all"] == pytest.approx(expected, abs=1e-5)
            assert row["reward"] == max(row["rewards_of_all"])
            assert row["responses"] == [sampled["responses"][expected.index(max(expected))]]

    def test_the_reward_model_reads_a_typed_prompt_its_own_way(self, tiny_model, reward_model, tmp_path, capsys):
        """The model has a chat template, the reward model none: it reads prompt and response as plain text."""
        chat = shutil.copytree(tiny_model, tmp_path / "chat")
        tokenizer = load_tokenizer(str(chat))
        tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
        tokenizer.save_pretrained(chat)
        (row,) = generate(capsys, chat, "it runs", "--best-of", 3, "--reward", reward_model)
        (sampled,) = generate(capsys, chat, "it runs", "--samples", 3)
        expected = rewards_of(reward_model, "it runs", sampled["responses"])
        assert row["rewards_of_all"] == pytest.approx(expected, abs=1e-5)

    def test_the_reward_is_in_the_table(self, tiny_model, reward_model, capsys):
        (row,) = generate(capsys, tiny_model, "it runs", "--best-of", 2, "--reward", reward_model)
        command = ["generate", tiny_model, "it runs", "--best-of", 2, "--reward", reward_model, "--max-new-tokens", 6]
        assert run([str(part) for part in command]) == 0
        assert f"{row['reward']:.4f}" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--best-of", "2"], "no preference head"),
            (["--best-of", "2", "--samples", "2"], "both given"),
            (["--best-of", "2", "--head", "h", "--reward", "{reward}"], "--head and --reward are both given"),
            (["--reward", "{reward}"], "--reward is given without --best-of, so it has no effect"),
            (["--head", "h"], "--head is given without --best-of"),
            (["--best-of", "2", "--label", "0"], "--label is given without --reward"),
            (["--best-of", "2", "--reward", "{model}"], "this is a language model, a LlamaForCausalLM"),
            (["--best-of", "2", "--reward", "{reward}", "--label", "1"], "is 1, the model has 1 outputs"),
            (["--best-of", "2", "--reward", "nowhere"], "nowhere"),
        ],
    )
    def test_mistakes_exit_with_2(self, flags, message, tiny_model, reward_model, capsys):
        filled_flags = [flag.format(reward=reward_model, model=tiny_model) for flag in flags]
        assert run(["generate", str(tiny_model), "cat", *filled_flags]) == 2
        assert message in capsys.readouterr().err
