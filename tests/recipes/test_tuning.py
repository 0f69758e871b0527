"""Errors of a training stage are raised before the first stage runs."""

from __future__ import annotations

import json

import pytest

from penchant.config.section import validated
from penchant.data.groups import PreferenceGroup
from penchant.errors import ConfigError, DataError, PenchantError, TrainingError
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.pipeline import dialogue
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.pipeline import domain_expert, read_preferences
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.pipeline import recommend
from penchant.recipes.self_improve.config import SelfImproveConfig
from penchant.recipes.self_improve.text_learner import TextLearner
from penchant.recipes.tuning import TuningConfig, check_tuning

PAIR = PreferenceGroup("", ("a", "b"), preferred=0)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "dppo"}, "dppo"),
        ({"name": "dpo", "betta": 1}, "betta"),
        ({"name": "dpo", "beta": "high"}, "beta"),
        ({"name": "preference_head"}, "preference_head does not train a language model"),
        ({"name": "bradley_terry"}, "bradley_terry does not train a language model"),
        ({"name": "multi_reference"}, "multi_reference mixes references, and the stage has one"),
    ],
)
def test_objective_that_cannot_train_the_stage(objective, message):
    with pytest.raises(ConfigError, match=f"(?s)here: .*{message}"):
        check_tuning("here", objective, TuningConfig(), [PAIR], "here")


def test_groups_that_an_objective_cannot_learn_from():
    check_tuning("here", {"name": "dpo"}, TuningConfig(), [PAIR], "here")
    with pytest.raises(DataError, match=r"here: rloo learns from scores"):
        check_tuning("here", {"name": "rloo"}, TuningConfig(), [PAIR], "here")
    with pytest.raises(DataError, match="dpo compares at least 2 candidates"):
        check_tuning("here", {"name": "dpo"}, TuningConfig(), [PreferenceGroup("", ("a",))], "here")


def test_objective_errors_are_raised_before_any_file_is_written(tmp_path):
    """In every recipe whose configuration has an objective."""
    wrong = {"objective": {"name": "dpo", "betta": 1}}
    rows = "".join(json.dumps({"prompt": f"{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(9))
    (tmp_path / "data.jsonl").write_text(rows)
    data, output = str(tmp_path / "data.jsonl"), {"output": str(tmp_path / "out")}
    expert = dict.fromkeys(("instructions", "preferences", "tasks"), data) | {"texts": {"file": data}}
    source = {"file": data, "pairs": "styles"}
    recipes = (
        (recommend, RecommendConfig, {"interactions": data, "titles": data, "methods": [{"name": "a", **wrong}]}),
        (domain_expert, DomainExpertConfig, expert | {"base": "b", "instruct": "i", "conversation": wrong}),
        (
            dialogue,
            DialogueConfig,
            {"sources": {"a": source}, "models": {"m": {"model": "b"}}, "methods": {"a": wrong}},
        ),
    )
    settings = ("methods.a", "conversation", "methods.a")
    for (run, kind, values), setting in zip(recipes, settings, strict=True):
        with pytest.raises(PenchantError, match=rf"(?s)^{setting}: .*objective.betta: dpo has no such"):
            run(validated(kind, output | values, "test"))
    assert not (tmp_path / "out").exists()


def test_score_objective_without_rated_answers(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    values = {
        "models": {"m": {"model": "b"}},
        "methods": {"a": {"objective": {"name": "rloo"}}},
        "output": str(tmp_path / "out"),
    }
    source = {"file": str(tmp_path / "a.jsonl"), "pairs": "styles"}
    with pytest.raises(DataError, match=r"methods\.a: rloo learns from scores") as caught:
        dialogue(validated(DialogueConfig, values | {"sources": {"a": source}}, "test"))
    assert fixes_of(caught.value) == ["methods.a.objective.name=dpo", "sources.a.pairs=ratings"]


def fixes_of(error: PenchantError) -> list[str]:
    """The settings and commands in an error's fix, each after its colon."""
    return [part.partition(": ")[2] for part in str(error.fix).split(", or ")]


def test_fix_for_missing_scores_names_recipe_keys(tmp_path):
    """No stage of a recipe takes a reward, so the fix suggests none."""
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"{n}", "chosen": "a", "rejected": "b"}) + "\n" for n in range(9)))
    data, output = str(file), {"output": str(tmp_path / "out")}
    rloo = {"objective": {"name": "rloo"}}
    titles = {"interactions": data, "titles": data, "methods": [{"name": "a", "negatives": 1, **rloo}]}
    with pytest.raises(DataError, match="rloo learns from scores") as caught:
        recommend(validated(RecommendConfig, output | titles, "test"))
    assert fixes_of(caught.value) == ["methods.a.objective.name=dpo"]
    files = dict.fromkeys(("instructions", "preferences", "tasks"), data) | {"texts": {"file": data}}
    expert = files | {"base": "b", "instruct": "i", "conversation": rloo}
    with pytest.raises(DataError, match="rloo learns from scores") as caught:
        domain_expert(validated(DomainExpertConfig, output | expert, "test"))
    score = f"penchant score {data} --output NEW.jsonl --model MODEL, then preferences=NEW.jsonl"
    assert fixes_of(caught.value) == ["conversation.objective.name=dpo", score]


def test_fix_for_missing_scores_works(tmp_path):
    """The domain expert accepts preferences with scores, as `penchant score` writes them."""
    row = {"prompt": "a", "candidates": ["b", "c"], "scores": [1.0, 0.0]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    check_tuning(
        "conversation", {"name": "rloo"}, TuningConfig(), read_preferences(str(tmp_path / "data.jsonl")), "data.jsonl"
    )


def test_self_improvement_errors_name_its_own_keys(monkeypatch, tmp_path):
    values = {"model": "unread", "prompts": "unread", "output": str(tmp_path), "verifier": {"reward": {"model": "m"}}}
    config = validated(SelfImproveConfig, values, "test")

    def fail_training(run, **options):
        raise TrainingError(
            "the run stops", fix="training.seed=1, lora.rank=2, objective.beta=1 or data.truncation=drop"
        )

    monkeypatch.setattr("penchant.recipes.tuning.train", fail_training)
    with pytest.raises(TrainingError) as error:
        TextLearner(config).tune(tmp_path, "unread", 0)
    assert error.value.fix == (
        "update.training.seed=1, update.lora.rank=2, update.objective.beta=1 or data.truncation=drop"
    )

    def open_reward(settings, **options):
        raise ConfigError("the function is in reward.py", fix="say which is the reward: reward.label=1")

    monkeypatch.setattr("penchant.recipes.self_improve.config.open_reward", open_reward)
    with pytest.raises(ConfigError) as error:
        config.verifier.open()
    assert (error.value.what, error.value.fix) == (
        "the function is in reward.py",
        "say which is the reward: verifier.reward.label=1",
    )
