"""The reading settings of recipes: handed to every run and measurement, and lengths checked before the first."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from penchant.cli_recipe import RECIPES
from penchant.config import DataConfig
from penchant.data.groups import PreferenceGroup
from penchant.data.writing import write_groups
from penchant.errors import DataError
from penchant.evaluation.generation import Sampling
from penchant.recipes.dialogue.config import DialogueConfig
from penchant.recipes.dialogue.pipeline import dialogue
from penchant.recipes.reading import (
    READING,
    Reader,
    ReadingConfig,
    check_lengths,
    groups_of,
    read_answers,
    read_log_probs,
)
from penchant.recipes.small_llama import Sizes
from penchant.recipes.tuning import TunedConfig, tuning_run

CUT = ReadingConfig(truncation="keep_end_of_prompt")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_takes_a_runs_keys(name):
    field = RECIPES[name]()[0].model_fields["data"]
    keys = set(field.annotation.model_fields)
    assert keys <= set(DataConfig.model_fields)
    assert {"max_length", "truncation", "as_chat", "chat_template_kwargs", "empty", "identical", "learn"} <= keys
    assert all(ReadingConfig.model_fields[key].default == DataConfig.model_fields[key].default for key in keys)


def test_a_recipe_checks_them_as_a_run_does():
    assert ReadingConfig.model_validate({"date": datetime.date(2026, 11, 30)}).date == "2026-11-30"
    for wrong, message in (({"date": "today"}, "is no day"), ({"chat_template_kwargs": {"tools": []}}, "is a column")):
        with pytest.raises(ValidationError, match=message):
            ReadingConfig.model_validate(wrong)


def test_what_is_only_measured_is_neither_refused_nor_dropped():
    """All models answer the same questions."""
    reading = ReadingConfig(refused="drop", empty="drop", truncation="drop", learn="all").measuring()
    assert (reading.rendering.refused, reading.empty, reading.truncation) == ("error", "error", "keep_end_of_prompt")
    assert (reading.rendering.learn, READING.measuring().rendering.learn) == ("all", "last")


def test_a_stages_run_has_them(tmp_path):
    reading = ReadingConfig(max_length=9, truncation="drop", as_chat=True, chat_template_kwargs={"x": 1}, empty="drop")
    run = tuning_run(tmp_path, "m", Path("a.jsonl"), None, {"name": "dpo"}, TunedConfig(), keys={}, reading=reading)
    assert {key: getattr(run.data, key) for key in type(reading).model_fields} == reading.model_dump()
    assert READING.settings == {}, "stages done before this setting was there stay done"
    assert CUT.settings == {"data": {"truncation": "keep_end_of_prompt"}}


class TestLengths:
    """Context of the tiny model: 128 tokens."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        groups = [PreferenceGroup("the old cat " * n, (" sees", " runs"), preferred=0, id=str(n)) for n in (2, 60)]
        write_groups(groups, tmp_path / "train.jsonl")
        return tmp_path / "train.jsonl"

    def test_the_file_and_the_model_are_named(self, file, tiny_model):
        reader = Reader.load(str(tiny_model), READING)
        with pytest.raises(DataError, match="truncation=drop") as error:
            check_lengths([reader], groups_of("data", [file]), READING)
        assert error.value.where == f"train.jsonl of stage data, as {tiny_model} reads it, group 60"
        check_lengths([reader], groups_of("data", [file]), CUT)

    def test_what_is_measured_is_cut_and_never_dropped(self, file, tiny_model):
        groups = [PreferenceGroup("the old cat " * n, (" sees",), id=str(n)) for n in (2, 60)]
        with pytest.raises(DataError):
            read_log_probs(str(tiny_model), groups, 256)
        for reading in (CUT, ReadingConfig(truncation="drop")):
            assert len(read_log_probs(str(tiny_model), groups, 256, reading)) == 2
            prompts = [group.prompt for group in groups]
            assert len(read_answers(str(tiny_model), prompts, Sampling(max_new_tokens=2), reading)) == 2

    def test_of_a_model_from_nothing(self, file):
        sizes = Sizes(vocabulary=300, hidden=32, layers=1, heads=2, context=64)
        reader = Reader.from_nothing("small", ["the old cat sees and runs"], sizes, 0, ReadingConfig())
        with pytest.raises(DataError, match="max_length is 64"):
            check_lengths([reader], groups_of("data", [file]), READING)


def test_a_long_question_stops_the_dialogue_recipe_in_its_first_stage(tmp_path):
    """One question of 1,159 tokens at context 1,024 died at stage 5 of 12."""
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
    cut = config.model_copy(update={"data": CUT})
    assert list(dialogue(cut, only="data")) == ["data"]
