"""The reading settings of recipes reach every run and evaluation, and lengths are checked in the first stage."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from penchant.cli.recipe import RECIPES
from penchant.config.run_sections import DataConfig
from penchant.data.groups import PreferenceGroup
from penchant.data.writing import write_groups
from penchant.errors import DataError
from penchant.evaluation.answering import Sampling
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.pipeline import dialogue
from penchant.recipes.reading import (
    DEFAULT_READING,
    ModelTokenizer,
    ReadingConfig,
    check_lengths,
    compute_log_probs,
    generate_answers,
    read_stage_groups,
)
from penchant.recipes.small_llama import Sizes
from penchant.recipes.tuning import StageData, TuningConfig, tuning_run

TRUNCATING = ReadingConfig(truncation="keep_end_of_prompt")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_the_data_keys_of_a_run(name):
    field = RECIPES[name]()[0].model_fields["data"]
    keys = set(field.annotation.model_fields)
    assert keys <= set(DataConfig.model_fields)
    assert {"max_length", "truncation", "as_chat", "chat_template_kwargs", "empty", "identical", "learn"} <= keys
    assert all(ReadingConfig.model_fields[key].default == DataConfig.model_fields[key].default for key in keys)


def test_recipe_validates_reading_settings_like_a_run():
    assert ReadingConfig.model_validate({"date": datetime.date(2026, 11, 30)}).date == "2026-11-30"
    for wrong, message in (
        ({"date": "today"}, "is not a date"),
        ({"chat_template_kwargs": {"tools": []}}, "is a column"),
    ):
        with pytest.raises(ValidationError, match=message):
            ReadingConfig.model_validate(wrong)


def test_evaluation_never_drops_rows():
    """All models must answer the same questions."""
    reading = ReadingConfig(refused="drop", empty="drop", truncation="drop", learn="all").evaluation_reading()
    assert (reading.rendering.refused, reading.empty, reading.truncation) == ("error", "error", "keep_end_of_prompt")
    assert (reading.rendering.learn, DEFAULT_READING.evaluation_reading().rendering.learn) == ("all", "last")


def test_stage_run_has_the_reading_settings(tmp_path):
    reading = ReadingConfig(max_length=9, truncation="drop", as_chat=True, chat_template_kwargs={"x": 1}, empty="drop")
    run = tuning_run(
        tmp_path, "m", StageData(Path("a.jsonl"), reading=reading), {"name": "dpo"}, TuningConfig(), keys={}
    )
    assert {key: getattr(run.data, key) for key in type(reading).model_fields} == reading.model_dump()
    assert DEFAULT_READING.settings == {}, "a stage done before this setting existed stays done"
    assert TRUNCATING.settings == {"data": {"truncation": "keep_end_of_prompt"}}


class TestLengths:
    """Lengths against the tiny model's context of 128 tokens."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        groups = [PreferenceGroup("the old cat " * n, (" sees", " runs"), preferred=0, id=str(n)) for n in (2, 60)]
        write_groups(groups, tmp_path / "train.jsonl")
        return tmp_path / "train.jsonl"

    def test_error_names_the_file_and_the_model(self, file, tiny_model):
        model = ModelTokenizer.load(str(tiny_model), DEFAULT_READING)
        with pytest.raises(DataError, match="truncation=drop") as error:
            check_lengths([model], read_stage_groups("data", [file]), DEFAULT_READING)
        assert error.value.where == f"train.jsonl of stage data, as {tiny_model} reads it, group 60"
        check_lengths([model], read_stage_groups("data", [file]), TRUNCATING)

    def test_evaluation_truncates_long_rows(self, file, tiny_model):
        groups = [PreferenceGroup("the old cat " * n, (" sees",), id=str(n)) for n in (2, 60)]
        with pytest.raises(DataError):
            compute_log_probs(str(tiny_model), groups, 256)
        for reading in (TRUNCATING, ReadingConfig(truncation="drop")):
            assert len(compute_log_probs(str(tiny_model), groups, 256, reading)) == 2
            prompts = [group.prompt for group in groups]
            assert len(generate_answers(str(tiny_model), prompts, Sampling(max_new_tokens=2), reading)) == 2

    def test_length_limit_of_a_new_model(self, file):
        sizes = Sizes(vocabulary=300, hidden=32, layers=1, heads=2, context=64)
        model = ModelTokenizer.from_scratch("small", ["the old cat sees and runs"], sizes, 0, ReadingConfig())
        with pytest.raises(DataError, match="max_length is 64"):
            check_lengths([model], read_stage_groups("data", [file]), DEFAULT_READING)


def test_too_long_question_stops_the_dialogue_recipe_in_its_first_stage(tmp_path):
    """A question of 1,159 tokens with a context of 1,024 once failed only at stage 5 of 12."""
    rows = [
        {"question": f"What helps {word} sleep?", "answer": f"Rest {word} {n} and drink water today.", "rating": n}
        for word in (f"w{i}" for i in range(12))
        for n in (1, 5)
    ]
    rows += [{"question": f"Long {'very ' * 90}?", "answer": f"Answer number {n} of it.", "rating": n} for n in (1, 5)]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("\n\n".join(f"A passage {n} of some words that say it." for n in range(20)))
    sizes = {"vocabulary": 300, "hidden": 32, "layers": 1, "heads": 2, "context": 96}
    config = DialogueConfig.model_validate(
        {
            "sources": {"forum": {"file": str(tmp_path / "answers.jsonl"), "pairs": "ratings"}},
            "models": {"small": {"new": sizes}},
            "new_models": {"texts": str(tmp_path / "texts.txt")},
            "output": str(tmp_path / "out"),
            "seeds": [0, 1],
            "held_out": 0.2,
            "review": {"most": 1},
        }
    )
    with pytest.raises(DataError, match=r"data.max_length is 96") as error:
        dialogue(config)
    assert "as small (context 96) reads it" in str(error.value.where)
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == ["data"]
    truncating = config.model_copy(update={"data": TRUNCATING})
    assert list(dialogue(truncating, only_stage="data")) == ["data"]
