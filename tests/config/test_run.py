"""One YAML file is one typed object: defaults, overrides, and every problem at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from penchant.config.run import RunConfig, describe_objective, dump_config, load_config, parse_config
from penchant.config.section import override
from penchant.errors import ConfigError
from penchant.objectives import OBJECTIVES

LEAST: dict[str, Any] = {"model": "m", "data": "pairs.jsonl", "output": "out", "objective": {"name": "dpo"}}


def parsed(**sections: Any) -> RunConfig:
    return parse_config({**LEAST, **sections}, "run.yaml")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(LEAST))
    return file


class TestDefaults:
    def test_dump_has_all_default_values(self):
        dumped = yaml.safe_load(dump_config(parsed(lora={})))
        assert dumped.keys() == RunConfig.model_fields.keys()
        for name, value in parsed(lora={}):
            if isinstance(value, BaseModel):
                assert dumped[name].keys() == type(value).model_fields.keys()
        assert dumped["data"]["train"] == "pairs.jsonl"
        assert dumped["objective"] == {"name": "dpo", "beta": 0.1, "average": "groups"}
        assert dumped["training"]["learning_rate"] == 1e-6
        assert dumped["lora"]["rank"] == 16

    @pytest.mark.parametrize("name", OBJECTIVES)
    @pytest.mark.parametrize("lora", [None, {"targets": ["q_proj", "v_proj"]}])
    def test_dump_loads_to_the_same(self, tmp_path, name, lora):
        config = parsed(objective={"name": name}, lora=lora)
        file = tmp_path / "config.yaml"
        file.write_text(dump_config(config), encoding="utf-8")
        reloaded = load_config(file)
        assert dump_config(reloaded) == dump_config(config)
        assert reloaded.built_objective == config.built_objective
        assert reloaded.model_copy(update={"objective": config.objective}) == config

    @given(
        st.floats(min_value=1e-300, max_value=1e300),
        st.integers(min_value=0, max_value=2**62),
        # PyYAML folds U+0085 in a quoted text; no path holds it, nor other control characters.
        st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1),
    )
    def test_values_survive_the_file(self, rate, seed, path):
        config = parsed(training={"learning_rate": rate, "seed": seed}, output=path)
        reloaded = parse_config(yaml.safe_load(dump_config(config)), "again")
        assert reloaded.training == config.training
        assert reloaded.output == path

    @pytest.mark.parametrize("name", OBJECTIVES)
    def test_objective_has_the_defaults_of_its_class(self, name):
        config = parsed(objective={"name": name})
        assert config.built_objective == OBJECTIVES[name]()
        assert describe_objective(config.built_objective).keys() == {
            "name",
            *(field.name for field in dataclasses.fields(OBJECTIVES[name])),
        }

    def test_objective_takes_its_own_fields(self):
        method = parsed(objective={"name": "dpo", "beta": "5e-1", "average": "pairs"}).built_objective
        assert describe_objective(method) == {"name": "dpo", "beta": 0.5, "average": "pairs"}

    def test_it_is_frozen(self):
        with pytest.raises(ValueError, match="frozen"):
            parsed().training.seed = 1  # type: ignore[misc]


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "path", "value"),
        [
            ("training.learning_rate=1e-6", "training.learning_rate", 1e-6),
            ("training.learning_rate=5E-7", "training.learning_rate", 5e-7),
            ("training.gradient_checkpointing=true", "training.gradient_checkpointing", True),
            ("training.betas=[0.8, 0.9]", "training.betas", (0.8, 0.9)),
            ("training.betas=[0, 0.999]", "training.betas", (0.0, 0.999)),
            ("data.train=other.jsonl", "data.train", "other.jsonl"),
            ("data.max_length=64", "data.max_length", 64),
            ("data.columns={prompt: question}", "data.columns", {"prompt": "question"}),
            ("data.held_out=0.1", "data.held_out", 0.1),
            ("data.held_out=test.jsonl", "data.held_out", "test.jsonl"),
            ("data.held_out=null", "data.held_out", None),
            ("objective.beta=0.3", "built_objective.beta", 0.3),
            ("lora.rank=4", "lora.rank", 4),
            ("output=a=b", "output", "a=b"),
        ],
    )
    def test_one(self, file, override, path, value):
        loaded_value: Any = load_config(file, [override])
        for name in path.split("."):
            loaded_value = getattr(loaded_value, name)
        assert loaded_value == value
        assert type(loaded_value) is type(value)

    def test_data_given_as_a_path_keeps_it(self, file):
        config = load_config(file, ["data.max_length=64", "data.held_out=0.5"])
        assert (config.data.train, config.data.max_length, config.data.held_out) == ("pairs.jsonl", 64, 0.5)

    def test_last_override_wins(self, file):
        assert load_config(file, ["training.seed=1", "training.seed=2"]).training.seed == 2

    def test_a_section_that_the_file_has_as_null(self, file):
        file.write_text(yaml.safe_dump({**LEAST, "lora": None}))
        assert load_config(file, ["lora.rank=4"]).lora.rank == 4  # type: ignore[union-attr]

    def test_yaml_number_without_a_point_in_the_file(self, file):
        """YAML 1.1 reads 1e-6 as text."""
        file.write_text(file.read_text() + "training: {learning_rate: 1e-6, epsilon: 1e-8}\n")
        assert yaml.safe_load(file.read_text())["training"]["learning_rate"] == "1e-6"
        training = load_config(file).training
        assert (training.learning_rate, training.epsilon) == (1e-6, 1e-8)

    @pytest.mark.parametrize("override", ["seed", "=1", ""])
    def test_override_without_an_equals_sign(self, file, override):
        with pytest.raises(ConfigError, match="is not of the form key=value"):
            load_config(file, [override])

    def test_sections_of_a_list_are_addressed_by_name(self):
        values: dict[str, Any] = {"methods": [{"name": "dpo", "objective": None}, "ipo", {"name": "s_dpo"}]}
        override(values, "methods.s_dpo.training.seed=3")
        override(values, "methods.dpo.objective.beta=0.2")
        assert values["methods"] == [
            {"name": "dpo", "objective": {"beta": 0.2}},
            "ipo",
            {"name": "s_dpo", "training": {"seed": 3}},
        ]
        with pytest.raises(ConfigError, match="none of these is named kto") as error:
            override(values, "methods.kto.objective.beta=0.2")
        assert error.value.fix == "one of: dpo, s_dpo"
        with pytest.raises(ConfigError, match="and not a section with keys"):
            override(values, "methods.dpo=3")

    def test_value_that_is_no_yaml(self, file):
        with pytest.raises(ConfigError, match=r"training\.seed: '\[1' is not a YAML value"):
            load_config(file, ["training.seed=[1"])

    def test_key_below_a_value(self, file):
        with pytest.raises(ConfigError, match="model is 'm', and not a section with keys"):
            load_config(file, ["model.name=x"])


class TestProblems:
    @pytest.mark.parametrize(
        ("sections", "says"),
        [
            ({"modle": 1}, "modle: there is no such key (did you mean model?)"),
            (
                {"training": {"lerning_rate": 1}},
                "training.lerning_rate: there is no such key (did you mean learning_rate?)",
            ),
            ({"lora": {"rnk": 1}}, "lora.rnk: there is no such key (did you mean rank?)"),
            ({"checkpoints": {"zzz": 1}}, "checkpoints.zzz: there is no such key\n"),
            ({"data": {"max_length": 5}}, "data.train: this key is needed"),
            ({"data": {"train": "x", "held_out": 1}}, "a share of prompts must lie between 0 and 1, found 1"),
            ({"data": 7}, "data: "),
            ({"objective": {"name": "dop"}}, "objective.name: 'dop' is no objective (did you mean dpo?)"),
            ({"objective": {}}, "objective has no name"),
            ({"objective": {"name": ["dpo"]}}, "is no objective"),
            ({"objective": "dpo"}, "objective: "),
            ({"objective": {"name": "dpo", "avrage": 1}}, "dpo has no such hyper-parameter (did you mean average?)"),
            ({"objective": {"name": "sft", "beta": 1}}, "objective.beta: sft has no such hyper-parameter"),
            ({"objective": {"name": "dpo", "beta": 0}}, "beta is 0.0, expected a number above 0"),
            (
                {"objective": {"name": "dpo", "average": "rows"}},
                "objective.average: input should be 'groups' or 'pairs'",
            ),
            ({"training": {"epochs": float("nan")}}, "training.epochs: "),
            ({"training": {"max_grad_norm": float("inf")}}, "training.max_grad_norm: input should be a finite number"),
            ({"training": {"betas": [0.9]}}, "training.betas.1: this key is needed"),
            ({"training": {"betas": [0.9, 1.0]}}, "training.betas: both must lie in [0, 1), found [0.9, 1.0]"),
            ({"training": {"betas": [-0.1, 0.9]}}, "training.betas: both must lie in [0, 1), found [-0.1, 0.9]"),
            ({"training": None}, "training: "),
            (
                {"data": {"train": "x", "held_out": 0.1, "held_out_split": "test"}},
                "data.held_out is 0.1, a share of the training data, and data.held_out_split is 'test'",
            ),
            ({"evaluation": {"every": 5}}, "evaluation.every is 5, and no held-out data is named: give data.held_out"),
            ({"evaluation": {"patience": 2}}, "evaluation.patience is 2, and evaluation.every is null"),
            (
                {"evaluation": {"metric": "rewards/margins"}},
                "evaluation.metric is 'rewards/margins', and evaluation.ev",
            ),
            (
                {"objective": {"name": "preference_head"}, "head": {"freeze_backbone": True}, "lora": {}},
                "head.freeze_backbone is true, so lora would train nothing",
            ),
            ({"training": {"decay_towards": "start"}}, "training.decay_towards is start, and training.weight_decay is"),
            (
                {"training": {"decay_towards": "start", "weight_decay": 0.1}, "lora": {}},
                "training.decay_towards is start, which is what weight_decay does with adapters anyway",
            ),
            (
                {
                    "objective": {"name": "preference_head"},
                    "head": {"freeze_backbone": True},
                    "training": {"decay_towards": "start", "weight_decay": 0.1},
                },
                "training.decay_towards is start, and head.freeze_backbone trains no weight of the model",
            ),
        ],
    )
    def test_each_names_its_key(self, sections, says):
        with pytest.raises(ConfigError) as caught:
            parsed(**sections)
        assert caught.value.where == "run.yaml"
        assert says in f"{caught.value}\n"

    def test_all_at_once(self):
        with pytest.raises(ConfigError) as caught:
            parsed(
                training={"batch_size": 0, "seed": "x"},
                evaluation={"evry": 1},
                objective={"name": "dpo", "beta": -1},
            )
        text = str(caught.value)
        assert "4 problem(s)" in text
        for key in ("training.batch_size", "training.seed", "evaluation.evry", "beta is -1.0"):
            assert text.count(key) == 1

    def test_settings_without_effect_are_reported_with_all_other_errors(self):
        with pytest.raises(ConfigError) as caught:
            parsed(evaluation={"patience": 2, "metric": "kl"}, objective={"name": "dpo", "beta": -1})
        assert "3 problem(s)" in str(caught.value)

    @pytest.mark.parametrize(
        "sections",
        [
            {"data": {"train": "x", "held_out": "y", "held_out_split": "test"}},
            {"data": {"train": "x", "held_out_split": "test"}, "evaluation": {"every": 5}},
            {"data": {"train": "x", "held_out": 0.1}, "evaluation": {"every": 5, "patience": 2, "metric": "kl"}},
            {"objective": {"name": "preference_head"}, "head": {"freeze_backbone": True}},
            {"objective": {"name": "preference_head"}, "lora": {}},
            {"training": {"decay_towards": "start", "weight_decay": 0.1}},
        ],
    )
    def test_settings_that_have_an_effect_load_again(self, sections):
        config = parsed(**sections)
        assert dump_config(parse_config(yaml.safe_load(dump_config(config)), "again")) == dump_config(config)

    def test_long_values_are_shortened(self):
        with pytest.raises(ConfigError) as caught:
            parsed(training={"seed": "x" * 1000})
        assert len(str(caught.value)) < 400
