"""Stages' fingerprints change when a model's weights or a template change under the same name."""

from __future__ import annotations

import pytest

from penchant.config.section import validated
from penchant.config.shared_sections import JudgeConfig
from penchant.errors import DataError
from penchant.recipes.dialogue import pipeline as dialogue
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.domain_expert import pipeline as domain_expert
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.reading import judge_settings
from penchant.recipes.recommend import pipeline as recommend
from penchant.recipes.recommend.config import RecommendConfig
from penchant.storage.fingerprints import optional_weights_fingerprint

MODELS = ("base", "instruct", "encoder", "sentences", "entailment")


def test_hub_id_is_its_own_fingerprint(tmp_path):
    assert optional_weights_fingerprint(None) is None
    assert optional_weights_fingerprint("org/model") == "org/model"
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert optional_weights_fingerprint(str(tmp_path)) == optional_weights_fingerprint(str(tmp_path)) != str(tmp_path)


def test_missing_template(tmp_path):
    judge = JudgeConfig(url="http://localhost/v1", model="m", prompt=str(tmp_path / "no.txt"))
    with pytest.raises(DataError, match="cannot be read"):
        judge_settings(judge)
    assert judge_settings(None) is None


@pytest.fixture
def stage_settings(tmp_path):
    """A function that returns the settings of every recipe's stages for the current files."""
    for name in MODELS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"1")
    for name in ("data.jsonl", "rubric.txt"):
        (tmp_path / name).write_text("1")
    data, paths = str(tmp_path / "data.jsonl"), {name: str(tmp_path / name) for name in MODELS}
    judge = {"url": "http://localhost/v1", "model": "m", "prompt": str(tmp_path / "rubric.txt")}
    common = {"output": str(tmp_path / "out")}
    expert = dict.fromkeys(("instructions", "preferences", "tasks"), data) | {"texts": {"file": data}, "judge": judge}
    expert |= {"base": paths["base"], "instruct": paths["instruct"], "bert_score": {"model": paths["encoder"]}}
    measures = {"bert_score": {"model": paths["encoder"]}, "judge": judge}
    measures |= {name: paths[name] for name in ("sentences", "entailment")}
    talk = {"models": {"own": {"model": paths["base"]}}, "sources": {"a": {"file": data, "pairs": "styles"}}}
    configs = {
        recommend: (RecommendConfig, {"interactions": data, "titles": data, "model": paths["base"]}),
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
    ("changed_file", "stages"),
    [
        ("base/model.safetensors", {"recommend sft", "domain_expert adapted", *TUNED}),
        ("instruct/model.safetensors", {"domain_expert residual"}),
        ("encoder/model.safetensors", {"domain_expert evaluation", "dialogue evaluation"}),
        ("sentences/model.safetensors", {"dialogue evaluation"}),
        ("entailment/model.safetensors", {"dialogue evaluation"}),
        ("rubric.txt", {"domain_expert evaluation", "dialogue evaluation"}),
    ],
)
def test_changed_file_changes_the_settings_of_its_stages(tmp_path, stage_settings, changed_file, stages):
    old_settings = stage_settings()
    (tmp_path / changed_file).write_text("2")
    new_settings = stage_settings()
    assert old_settings.keys() == new_settings.keys()
    assert {name for name in old_settings if old_settings[name] != new_settings[name]} == stages
