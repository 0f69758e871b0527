"""Rewards: a user's function with all that can be wrong with it, and reward models against a plain forward."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
import transformers as hf

from penchant.config.shared_sections import RewardConfig
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError, ModelError, PenchantError
from penchant.evaluation.held_out import Reading
from penchant.evaluation.rewards import FunctionReward, ModelReward, open_reward, reward_from
from penchant.evaluation.score_file import with_scores
from penchant.models.loading import load_tokenizer
from penchant.models.reward_model import start_reward_model

CPU = torch.device("cpu")
FUNCTIONS = """
def lengths(prompt, responses):
    return [len(prompt) + len(text) for text in responses]

def raises(prompt, responses):
    raise KeyError("colour")

def short(prompt, responses):
    return [1.0]

def nothing(prompt, responses):
    return None

def words(prompt, responses):
    return ["good" for _ in responses]

def nan(prompt, responses):
    return [0.0, float("nan")]

constant = 3
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FUNCTIONS)
    return path


def open_function(where: str):
    return open_reward(RewardConfig(function=where), device=CPU)


class TestFunctions:
    def test_from_a_file(self, file):
        assert open_function(f"{file}:lengths")(["ab", "c"], [["x", "yz"], [""]]) == [[3.0, 4.0], [1.0]]

    def test_from_a_package(self):
        [scores] = open_function("penchant.recipes.demo_world:true_rewards")(
            ["x"], [["the film was superb .", "the film was awful ."]]
        )
        assert scores[0] > scores[1]

    def test_its_name_changes_with_its_source(self, file):
        name = open_function(f"{file}:lengths").name
        assert open_function(f"{file}:lengths").name == name
        file.write_text(FUNCTIONS.replace("len(prompt) + ", ""))
        assert open_function(f"{file}:lengths").name != name

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("raises", "raised KeyError: 'colour'"),
            ("short", "returned 1 numbers for 2 responses"),
            ("nothing", "returned None, expected 2 numbers"),
            ("words", "returned ['good', 'good'], expected 2 numbers"),
            ("nan", "returned nan for response 1, expected a finite number"),
        ],
    )
    def test_what_it_returns(self, file, name, message):
        with pytest.raises(DataError) as error:
            open_function(f"{file}:{name}")(["p", "q"], [["a", "b"], ["c", "d"]])
        assert message in str(error.value)
        assert f"{file}:{name}, prompt 0" in str(error.value)

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("{file}:absent", "absent has no such name"),
            ("{file}:constant", "constant is no function"),
            ("nowhere.py:f", "there is no such file"),
            ("no_such_package:f", "cannot be imported: ModuleNotFoundError"),
            ("just_a_name", "expected a module and a name"),
        ],
    )
    def test_where_it_is(self, file, where, message):
        with pytest.raises(ConfigError) as error:
            open_function(where.format(file=file))
        assert message in str(error.value)

    def test_a_file_that_fails(self, tmp_path):
        (tmp_path / "bad.py").write_text("import nothing_of_that_name")
        with pytest.raises(ConfigError, match="cannot be imported: ModuleNotFoundError"):
            open_function(f"{tmp_path / 'bad.py'}:f")


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("reward") / "model"
    torch.manual_seed(3)
    start_reward_model(str(tiny_model)).save_pretrained(folder)
    load_tokenizer(str(tiny_model)).save_pretrained(folder)
    return folder


class TestModels:
    PROMPTS = ("the old cat", "dog")
    RESPONSES = ((" sees a big dog", " runs", ""), (" likes the small house by the river tree",))

    @pytest.mark.parametrize("budget", [1, 25, 10000])
    def test_equals_a_plain_forward_whatever_the_batch(self, reward_folder, budget):
        reward = open_reward(RewardConfig(model=str(reward_folder)), device=CPU, reading=Reading(token_budget=budget))
        rewards = reward(self.PROMPTS, self.RESPONSES)
        tokenizer = hf.AutoTokenizer.from_pretrained(reward_folder)
        model = hf.AutoModelForSequenceClassification.from_pretrained(reward_folder).eval()
        for prompt, responses, scores in zip(self.PROMPTS, self.RESPONSES, rewards, strict=True):
            for response, score in zip(responses, scores, strict=True):
                ids = [*tokenizer(prompt + response).input_ids, tokenizer.eos_token_id]
                with torch.no_grad():
                    expected = float(model(torch.tensor([ids])).logits[0, 0])
                assert score == pytest.approx(expected, rel=1e-5)

    def test_several_outputs_need_a_label(self, tmp_path, tiny_model, reward_folder):
        config = hf.AutoConfig.from_pretrained(tiny_model, num_labels=3)
        torch.manual_seed(0)
        model = hf.AutoModelForSequenceClassification.from_config(config)
        model.save_pretrained(tmp_path)
        load_tokenizer(str(tiny_model)).save_pretrained(tmp_path)
        with pytest.raises(ConfigError, match="the reward model has 3 outputs"):
            open_reward(RewardConfig(model=str(tmp_path)), device=CPU)
        with pytest.raises(ConfigError, match=r"reward\.label is 5"):
            open_reward(RewardConfig(model=str(tmp_path), label=5), device=CPU)
        one, two = (open_reward(RewardConfig(model=str(tmp_path), label=k), device=CPU) for k in (1, 2))
        assert one(["a cat"], [[" runs"]]) != two(["a cat"], [[" runs"]])

    def test_a_language_model_is_none(self, tiny_model):
        with pytest.raises(ModelError, match=r"1 weights are not in the model's files.*score\.weight"):
            open_reward(RewardConfig(model=str(tiny_model)), device=CPU)

    def test_kept_scores_are_of_one_chat_template(self, reward_folder, tmp_path, monkeypatch):
        """A template is as much of the question as the texts: another is asked anew, the same is not."""
        rows: list[int] = []
        forward = ModelReward._score
        monkeypatch.setattr(ModelReward, "_score", lambda self, ids: rows.append(len(ids)) or forward(self, ids))
        group = PreferenceGroup(({"role": "user", "content": "the old cat"},), (" sees a dog", " runs"), preferred=0)

        def scores(template: str) -> tuple[float, ...]:
            file = tmp_path / "template.jinja"
            file.write_text(template)
            reward = open_reward(
                RewardConfig(model=str(reward_folder)), device=CPU, reading=Reading(chat_template=str(file))
            )
            return with_scores([group], reward)[0].scores

        plain = "{% for m in messages %} {{ m.content }}{% endfor %}"
        plain_scores = scores(plain)
        assert scores(plain) == plain_scores
        assert rows == [2]
        other = scores("bird" + plain)
        assert rows == [2, 2]
        assert other != plain_scores
        assert scores(plain) == plain_scores
        assert rows == [2, 2]

    def test_kept_scores_are_of_one_tokenizer(self, reward_folder, tmp_path):
        copy = shutil.copytree(reward_folder, tmp_path / "copy")
        config = RewardConfig(model=str(copy))
        name = open_reward(config, device=CPU).name
        assert open_reward(config, device=CPU).name == name
        file = copy / "tokenizer.json"
        file.write_text(file.read_text().replace('"cat"', '"kitten"'))
        assert open_reward(config, device=CPU).name != name

    def test_too_long(self, reward_folder):
        with pytest.raises(PenchantError, match="tokens"):
            open_reward(RewardConfig(model=str(reward_folder)), device=CPU)(["cat " * 200], [[" dog"]])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "expected one of model, function and judge, found none"),
        ({"model": "a", "function": "b:c"}, "found model and function"),
        ({"function": "b:c", "label": 1}, "label is a setting of model"),
        ({"judge_url": "http://x"}, "valid string"),
    ],
)
def test_flags(flags, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        reward_from(**flags)


def test_a_function_is_not_asked_for_what_is_not_there():
    assert FunctionReward(lambda p, r: 1 / 0, "x", "x")([], []) == []
