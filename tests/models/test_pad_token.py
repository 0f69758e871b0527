"""A saved reward model gives transformers' own rewards, alone and padded, whatever the tokenizer pads with."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from peft import PeftModel

from penchant.config.run import load_config
from penchant.config.shared_sections import RewardConfig
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenization import tokenize_groups
from penchant.data.trees import pack
from penchant.engine.reward_scorers import PaddedRewardScorer, TreeRewardScorer
from penchant.engine.scorer_choice import choose_reward_scorer
from penchant.errors import ModelError
from penchant.evaluation.rewards import open_reward
from penchant.models.loading import load_tokenizer
from penchant.models.lora import merge_adapter
from penchant.models.reward_model import load_reward_model, start_reward_model
from penchant.models.special_tokens import NEW_PAD, choose_pad_token, pad_token_id
from penchant.training.run import train

FAMILIES = ("llama", "llama-tied", "qwen3", "gpt2", "gemma2", "gemma3", "mistral-window", "opt", "gpt-neox", "phi3")
PROMPT = "the old cat"
RESPONSES = (" sees a big dog by the river", " runs", " likes the small house")
EOS = 2


def model_folder(folder: Path, source: Path, config: hf.PretrainedConfig, pads: str) -> Path:
    """A random language model whose tokenizer pads with the end, with a token of its own, or with none.

    `only_end` has no special token but the end, and no row of the embedding to spare, as GPT-2.
    """
    shutil.copytree(source, folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    if pads != "separate":
        tokenizer.pad_token = tokenizer.eos_token if pads == "end" else None
    if pads == "only_end":
        raw = json.loads((folder / "tokenizer.json").read_text())
        words = list(raw["model"]["vocab"])
        names = {"<pad>": "spring", "<s>": "summer", "<unk>": "autumn"}
        raw["model"]["vocab"] = {names.get(word, word): i for i, word in enumerate(words)}
        raw["model"]["unk_token"] = "autumn"
        raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] == "</s>"]
        raw["post_processor"] = None
        (folder / "tokenizer.json").write_text(json.dumps(raw))
        tokenizer = hf.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), eos_token="</s>")
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    config.vocab_size = len(tokenizer)
    config.pad_token_id = {"separate": 0, "end": EOS}.get(pads)
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


def rows_of(tokenizer: hf.PreTrainedTokenizerBase) -> list[list[int]]:
    return [[*tokenizer(PROMPT + response).input_ids, tokenizer.eos_token_id] for response in RESPONSES]


def in_transformers(model: hf.PreTrainedModel, tokenizer: hf.PreTrainedTokenizerBase) -> dict[str, list[float]]:
    """Rewards alone, and in a batch padded on either side; positions count the tokens that are no padding."""
    rows, model = rows_of(tokenizer), model.eval()
    with torch.no_grad():
        rewards = {"alone": [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]}
        for side in ("right", "left"):
            tokenizer.padding_side = side
            batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
            places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            rewards[side] = model(**batch, position_ids=places).logits[:, 0].tolist()
    return rewards


def ours(folder: Path) -> list[float]:
    return open_reward(RewardConfig(model=str(folder)), device=torch.device("cpu"))([PROMPT], [RESPONSES])[0]


@pytest.fixture
def reward_run(write_config, tmp_path):
    """Train a reward model for one step, with or without LoRA."""

    def run(model: Path, name: str = "reward", **sections: object) -> Path:
        file = write_config(model=str(model), objective={"name": "bradley_terry"}, **sections)
        settings = [f"output={tmp_path / name}", "training.max_steps=1", "data.held_out=null"]
        return train(load_config(file, settings))

    return run


@pytest.mark.slow_but("llama-tied-only_end", "gpt2-none", "opt-end")
@pytest.mark.parametrize(
    ("family", "pads"),
    [
        *((family, "end") for family in FAMILIES),
        *itertools.product(("llama-tied", "gpt2", "opt"), ("separate", "none", "only_end")),
    ],
)
def test_a_saved_reward_model_scores_the_same_in_transformers(
    family, pads, tiny_model, tmp_path, reward_run, config_of
):
    folder = reward_run(model_folder(tmp_path / "model", tiny_model, config_of(family), pads))
    model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    expected = ours(folder)
    assert len({round(reward, 4) for reward in expected}) == 3
    for where, rewards in in_transformers(model, tokenizer).items():
        assert rewards == pytest.approx(expected, abs=1e-5), where
    assert model.config.get_text_config().pad_token_id == tokenizer.pad_token_id != EOS
    assert (tokenizer.pad_token == NEW_PAD) == (pads == "only_end")


@pytest.mark.slow_but("llama-tied-end")
@pytest.mark.parametrize("pads", ["end", "separate", "none", "only_end"])
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_a_merged_reward_adapter_scores_the_same(family, pads, tiny_model, tmp_path, reward_run, config_of):
    start = model_folder(tmp_path / "model", tiny_model, config_of(family), pads)
    run = reward_run(start, lora={"rank": 4}, training={"learning_rate": 0.05})
    merge_adapter(str(run), tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification")
    model = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert model.config.num_labels == 1
    tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / "merged")
    base = hf.AutoModelForSequenceClassification.from_pretrained(start, num_labels=1)
    base.config.pad_token_id = None  # As docs/online.md says: an adapter's folder cannot hold its base's pad token.
    unmerged = PeftModel.from_pretrained(base, run).eval()
    with torch.no_grad():
        expected = [float(unmerged(torch.tensor([row])).logits[0, 0]) for row in rows_of(tokenizer)]
    assert ours(run) == pytest.approx(expected, abs=1e-5)
    assert ours(tmp_path / "merged") == pytest.approx(expected, abs=1e-5)
    for where, rewards in in_transformers(model, tokenizer).items():
        assert rewards == pytest.approx(expected, abs=1e-5), where


class TestForeign:
    """A model that was trained elsewhere is read as transformers reads it."""

    def save_foreign(self, folder: Path, source: Path, pad: int | None) -> Path:
        torch.manual_seed(1)
        model = start_reward_model(str(source))
        model.config.pad_token_id = pad
        model.save_pretrained(folder)
        load_tokenizer(str(source)).save_pretrained(folder)
        return folder

    @pytest.mark.parametrize("pad", [None, 0, EOS])
    def test_its_reward_is_transformers(self, tmp_path, tiny_model, pad):
        folder = self.save_foreign(tmp_path / "foreign", tiny_model, pad)
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        tokenizer = load_tokenizer(str(folder))
        with torch.no_grad():
            expected = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows_of(tokenizer)]
        assert ours(folder) == pytest.approx(expected, abs=1e-5)
        groups, _ = tokenize_groups([PreferenceGroup(PROMPT, RESPONSES)], tokenizer, max_length=99)
        loaded = load_reward_model(str(folder)).eval()
        chosen = choose_reward_scorer(loaded, groups)
        assert isinstance(chosen.scorer, TreeRewardScorer)
        for scorer in (chosen.scorer, PaddedRewardScorer(load_reward_model(str(folder)).eval())):
            assert scorer(pack(groups))[0].tolist() == pytest.approx(expected, abs=1e-5)

    def test_kept_rewards_are_of_one_pad_token(self, tmp_path, tiny_model):
        """Rewards are kept on disk under the reward's name, and another pad token reads another token."""
        names = set()
        for pad in (None, 0, EOS):
            folder = self.save_foreign(tmp_path / f"pad-{pad}", tiny_model, pad)
            config = RewardConfig(model=str(folder))
            names.add(open_reward(config, device=torch.device("cpu")).name.replace(str(folder), ""))
        assert len(names) == 3

    @pytest.mark.slow
    def test_training_goes_on_as_it_is_read(self, tmp_path, tiny_model, reward_run):
        """Its pad token is the end, and so it stays: the head goes on being read before the end."""
        folder = reward_run(self.save_foreign(tmp_path / "foreign", tiny_model, EOS))
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert model.config.pad_token_id == EOS
        with torch.no_grad():
            rows = rows_of(load_tokenizer(str(folder)))
            expected = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]
            rewards = [float(model(torch.tensor([row[:-1]])).logits[0, 0]) for row in rows]
        assert ours(folder) == pytest.approx(expected, abs=1e-5)
        assert expected == pytest.approx(rewards, abs=1e-5)

    def test_a_run_of_an_older_version_is_read_at_its_end(self, tmp_path, tiny_model):
        """It was trained at the end, and saved with the end as its pad token."""
        folder = self.save_foreign(tmp_path / "old", tiny_model, EOS)
        (folder / "run.json").write_text("{}")
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder).eval()
        model.config.pad_token_id = None
        with torch.no_grad():
            rows = rows_of(load_tokenizer(str(folder)))
            expected = [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]
        assert ours(folder) == pytest.approx(expected, abs=1e-5)

    def test_several_outputs_cannot_be_trained_on(self, tmp_path, tiny_model):
        config = hf.AutoConfig.from_pretrained(tiny_model, num_labels=3)
        hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
        with pytest.raises(ModelError, match="has 3 outputs"):
            start_reward_model(str(tmp_path / "three"))


class TestChoice:
    TEMPLATE = "{% for m in messages %}<s>{{ m.role }} {{ m.content }}<pad>{% endfor %}"

    def test_what_ends_a_templates_turn_is_no_pad_token(self, tiny_model):
        tokenizer = load_tokenizer(str(tiny_model))
        assert choose_pad_token(tokenizer) == "<pad>"
        tokenizer.chat_template = self.TEMPLATE
        assert choose_pad_token(tokenizer) == "<unk>"

    @pytest.mark.parametrize(
        ("special", "chosen"),
        [
            (["<|image_pad|>", "<|fim_pad|>"], "<|fim_pad|>"),
            (["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
            (["<unused7>"], "<unused7>"),
            (["<|im_start|>"], "<unk>"),
        ],
    )
    def test_order(self, tiny_model, special, chosen):
        tokenizer = load_tokenizer(str(tiny_model))
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_tokens(special, special_tokens=True)
        names = {i for i, token in tokenizer.added_tokens_decoder.items() if str(token) == "<pad>"}
        assert names == {0}
        assert choose_pad_token(tokenizer) == "<pad>"
        tokenizer.chat_template = self.TEMPLATE  # Now <pad> ends a turn.
        assert choose_pad_token(tokenizer) == chosen

    def test_configuration_and_tokenizer_agree(self, tiny_model, tmp_path, reward_run, config_of):
        folder = reward_run(model_folder(tmp_path / "model", tiny_model, config_of("llama"), "none"))
        assert pad_token_id(load_reward_model(str(folder))) == load_tokenizer(str(folder)).pad_token_id
