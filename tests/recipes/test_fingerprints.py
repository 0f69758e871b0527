"""A model or a template that has changed under its name is another one."""

from __future__ import annotations

import pytest

from penchant.config_errors import validated
from penchant.config_reward import JudgeConfig
from penchant.errors import DataError
from penchant.recipes.dialogue import pipeline as dialogue
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.domain_expert import pipeline as domain_expert
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.fingerprints import judge_settings, named_weights
from penchant.recipes.recommend import pipeline as recommend
from penchant.recipes.recommend.config import RecommendConfig

MODELS = ("base", "instruct", "encoder", "sentences", "entailment")


def test_a_hub_id_is_its_name(tmp_path):
    assert named_weights(None) is None
    assert named_weights("org/model") == "org/model"
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert named_weights(str(tmp_path)) == named_weights(str(tmp_path)) != str(tmp_path)


def test_a_template_that_is_not_there(tmp_path):
    judge = JudgeConfig(url="http://localhost/v1", model="m", prompt=str(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        judge_settings(judge)
    assert judge_settings(None) is None


@pytest.fixture
def listed(tmp_path):
    """By recipe, its stages' settings as the files are now."""
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
    for name in ("data.jsonl", "rubric.txt"):
        (tmp_path / name).write_text("1")
    data, place = str(tmp_path / "data.jsonl"), {name: str(tmp_path / name) for name in MODELS}
    judge = {"url": "http://localhost/v1", "model": "m", "prompt": str(tmp_path / "rubric.txt")}
    common = {"output": str(tmp_path / "out")}
    expert = dict.fromkeys(("instructions", "preferences", "tasks"), data) | {"texts": {"file": data}, "judge": judge}
    expert |= {"base": place["base"], "instruct": place["instruct"], "bert_score": {"model": place["encoder"]}}
    measures = {"bert_score": {"model": place["encoder"]}, "judge": judge}
    measures |= {name: place[name] for name in ("sentences", "entailment")}
    talk = {"models": {"own": {"model": place["base"]}}, "sources": {"a": {"file": data, "pairs": "styles"}}}
    configs = {
        recommend: (RecommendConfig, {"interactions": data, "titles": data, "model": place["base"]}),
        domain_expert: (DomainExpertConfig, expert),
        dialogue: (DialogueConfig, talk | {"measures": measures, "seeds": [0, 1]}),
    }

    def settings():
        return {
            f"{recipe.__name__.split('.')[-2]} {stage.name}": stage.settings
            for recipe, (kind, values) in configs.items()
            for stage in recipe.stages(validated(kind, common | values, "test"))
        }

    return settings


TUNED = {f"dialogue own-{method}-{seed}" for method in ("sft", "dpo") for seed in (0, 1)}


@pytest.mark.parametrize(
    ("changed", "stages"),
    [
        ("base/model.safetensors", {"recommend sft", "domain_expert adapted", *TUNED}),
        ("instruct/model.safetensors", {"domain_expert residual"}),
        ("encoder/model.safetensors", {"domain_expert evaluation", "dialogue evaluation"}),
        ("sentences/model.safetensors", {"dialogue evaluation"}),
        ("entailment/model.safetensors", {"dialogue evaluation"}),
        ("rubric.txt", {"domain_expert evaluation", "dialogue evaluation"}),
    ],
)
def test_the_stages_that_see_it_change(tmp_path, listed, changed, stages):
    before = listed()
    (tmp_path / changed).write_text("2")
    after = listed()
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == stages
