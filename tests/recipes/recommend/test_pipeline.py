"""Tests of the whole recipe on small data, in which users take titles in a circle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.data.reading import read_groups
from penchant.errors import ConfigError, DataError
from penchant.recipes.recommend.baselines import NAMES
from penchant.recipes.recommend.catalogue import suggest
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.pipeline import recommend, stages

STEPS = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 6}


def make_config(folder: Path, **changes: object) -> RecommendConfig:
    rows = [f"u{u},i{(u + t) % 30},{100 * t + u}" for u in range(40) for t in range(14)]
    (folder / "interactions.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
    (folder / "titles.csv").write_text("\n".join(["item,title", *(f"i{n},Film {n}" for n in range(30))]) + "\n")
    values = {
        "interactions": str(folder / "interactions.csv"),
        "titles": str(folder / "titles.csv"),
        "output": str(folder / "out"),
        "new_model": {"vocabulary": 320, "hidden": 32, "layers": 2, "heads": 2, "context": 512, "training": STEPS},
        "questions": {"candidates": 5, "max_history": 4, "held_out": 12, "train": 48},
        "sft": {"training": STEPS},
        "methods": [
            {"name": "s_dpo", "training": STEPS, "choose": "hard"},
            {"name": "dpo", "objective": {"name": "dpo"}, "negatives": 1, "training": STEPS},
        ],
        "cutoffs": [1, 3],
        "answers": 3,
        **changes,
    }
    return validated(RecommendConfig, values, "test")


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recommend")
    return folder, recommend(make_config(folder))


def test_every_stage_writes_its_files(recipe_run):
    folder, result = recipe_run
    out = folder / "out"
    assert list(result) == ["questions", "model", "sft", "s_dpo", "dpo", "evaluation"]
    assert result["questions"]["questions"] == {"train": 48, "validation": 12, "test": 12}
    for name in ("model", "sft", "s_dpo", "dpo"):
        assert (out / name / "run" / "model.safetensors").exists()
    assert json.loads((out / "result.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert all(word in page for word in ("item-kNN", "s_dpo", "valid_ratio", "hit_ratio@3"))


def test_training_data_of_every_stage(recipe_run):
    folder, _ = recipe_run
    out = folder / "out"
    whole = {group.id: group for group in read_groups(out / "questions" / "train.jsonl").groups}
    for stage, candidates in (("sft", 1), ("s_dpo", 4), ("dpo", 2)):
        groups = read_groups(out / stage / "train.jsonl").groups
        assert [group.id for group in groups] == list(whole)
        for group in groups:
            question = whole[group.id]
            assert group.prompt == question.prompt
            assert group.candidates[0] == question.candidates[question.preferred]
            assert len(set(group.candidates)) == candidates
            assert set(group.candidates) <= set(question.candidates)


def test_metrics_agree_with_the_saved_ranks(recipe_run):
    folder, result = recipe_run
    rows = [json.loads(line) for line in (folder / "out" / "evaluation" / "sft.jsonl").read_text().splitlines()]
    expected = sum(row["above"] == 0 for row in rows) / 12
    metrics = result["evaluation"]["models"]["sft"]
    assert metrics["hit_ratio@1"]["value"] == pytest.approx(expected)
    assert metrics["valid_ratio"]["n"] == 3
    assert [row["answer"] is None for row in rows] == [False] * 3 + [True] * 9
    differences = result["evaluation"]["hit_ratio@1_over"]
    assert differences["dpo"]["sft"]["n"] == 12
    assert differences["s_dpo"]["dpo"]["value"] == -differences["dpo"]["s_dpo"]["value"]
    of_dpo = result["evaluation"]["models"]["dpo"]["hit_ratio@1"]["value"]
    assert differences["dpo"]["sft"]["value"] == pytest.approx(of_dpo - metrics["hit_ratio@1"]["value"])
    assert sum(value["n"] for key, value in metrics["by"].items() if key.startswith("history")) == 12


def test_baselines_predict_the_circle(recipe_run):
    _, result = recipe_run
    assert result["questions"]["baselines"]["last item"]["hit_ratio@1"]["value"] > 0.9
    assert result["questions"]["baselines"]["chance"]["hit_ratio@1"]["value"] == pytest.approx(0.2)
    assert tuple(result["questions"]["baselines"]) == NAMES


def test_suggestions_agree_with_the_recipes_ranks(recipe_run):
    folder, _ = recipe_run
    out, model = folder / "out", str(folder / "out" / "s_dpo" / "run")
    rows = [json.loads(line) for line in (out / "evaluation" / "s_dpo.jsonl").read_text().splitlines()]
    for group, row in list(zip(read_groups(out / "questions" / "test.jsonl").groups, rows, strict=True))[:3]:
        history = re.match("Liked before, oldest first: (.*)", group.prompt)[1].split("; ")
        result = suggest(model, history, group.candidates)
        target = group.candidates[group.preferred].strip()
        assert [suggestion.title for suggestion in result].index(target) in range(
            row["above"], row["above"] + row["tied"]
        )
        assert sum(suggestion.share for suggestion in result) == pytest.approx(1)
        assert [suggestion.log_prob for suggestion in result] == sorted(
            (suggestion.log_prob for suggestion in result), reverse=True
        )


@pytest.mark.parametrize(
    ("history", "candidates", "message"),
    [
        ([], ["A", "B"], "the history is empty"),
        (["A", " "], ["A", "B"], "the history is empty, or a title of it is"),
        (["A"], ["B"], "1 candidates, 1 different ones"),
        (["A"], ["B", "B"], "2 candidates, 1 different ones"),
        (["A"], ["B", ""], "2 candidates, 1 different ones"),
    ],
)
def test_suggestions_without_history_or_candidates_are_refused(recipe_run, history, candidates, message):
    with pytest.raises(DataError, match=message):
        suggest(str(recipe_run[0] / "out" / "sft" / "run"), history, candidates)


def test_a_model_without_wording(recipe_run):
    with pytest.raises(ConfigError, match="does not hold the wording of its questions"):
        suggest(str(recipe_run[0] / "out" / "model" / "run"), ["A"], ["B", "C"])


def test_from_the_command_line(recipe_run, capsys):
    arguments = ["recommend", str(recipe_run[0] / "out" / "dpo" / "run"), "--history", "Film 1", "--history", "Film 2"]
    assert run([*arguments, "--candidates", "Film 3", "--candidates", "Film 9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["suggestions"]
    assert {suggestion["title"] for suggestion in result} == {"Film 3", "Film 9"}
    assert run([*arguments, "--candidates", "Film 3"]) == 2


def test_finished_stages_are_skipped(assert_stages_done, recipe_run):
    folder, result = recipe_run
    assert_stages_done(recommend, make_config(folder), result)


@pytest.mark.slow
def test_methods_start_from_a_merged_adapter(recipe_run, tmp_path):
    """The SFT adapter is merged, so that a method's adapter is not put on another one."""
    lora = {"training": STEPS, "lora": {"rank": 2}}
    model = str(recipe_run[0] / "out" / "model" / "run")
    result = recommend(
        make_config(tmp_path, model=model, sft=lora, methods=[{"name": "s_dpo", "choose": "hard", **lora}])
    )
    out = tmp_path / "out"
    record = json.loads((out / "s_dpo" / "run" / "adapter_config.json").read_text())
    assert record["base_model_name_or_path"] == str(out / "sft" / "merged")
    assert (out / "sft" / "merged" / "model.safetensors").exists()
    assert set(result["evaluation"]["models"]) == {"start", "sft", "s_dpo"}
    [suggestion, *_] = suggest(str(out / "sft" / "run"), ["Film 1", "Film 2"], ["Film 3", "Film 9"])
    assert 0.5 <= suggestion.share <= 1


def test_a_model_with_other_weights_is_refused(recipe_run, tmp_path):
    shutil.copytree(recipe_run[0] / "out" / "model" / "run", tmp_path / "model")
    config = make_config(tmp_path, model=str(tmp_path / "model"))
    recommend(config, only_stage="questions")
    recommend(config, only_stage="sft")
    shutil.copy(recipe_run[0] / "out" / "sft" / "run" / "model.safetensors", tmp_path / "model")
    with pytest.raises(ConfigError, match="the stage was done when sft's weights was"):
        recommend(config, only_stage="sft")


@pytest.mark.slow
def test_a_killed_recipe_resumes_to_the_same_result(recipe_run, tmp_path, run_with_kills):
    config, out, undisturbed = tmp_path / "recommend.yaml", tmp_path / "out", recipe_run[0] / "out"
    config.write_text(yaml.safe_dump(make_config(tmp_path).model_dump(mode="json")))
    arguments = ["recipe", "recommend", str(config)]
    run_with_kills(arguments, out, ["questions", "model", "sft", "s_dpo", "dpo", "evaluation"])
    assert (out / "result.json").read_text() == (undisturbed / "result.json").read_text()
    for name in ("sft", "dpo"):
        ours, theirs = (folder / name / "run" / "model.safetensors" for folder in (out, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()


def test_changed_data_are_refused(recipe_run):
    folder, _ = recipe_run
    config = make_config(folder)
    with (folder / "interactions.csv").open("a") as stream:
        stream.write("u0,i29,1\n")
    with pytest.raises(ConfigError, match="questions's interactions was"):
        recommend(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "sft"}]}, "sft names two stages"),
        ({"methods": [{"name": "a"}, {"name": "a"}]}, "a names two stages"),
        ({"methods": [{"name": "evaluation"}]}, "evaluation names two stages"),
        ({"methods": [{"name": "start"}]}, "start is another row of the tables"),
        ({"methods": [{"name": "popularity"}]}, "popularity is another row of the tables"),
        ({"methods": [{"name": "item-kNN"}]}, "item-kNN is another row of the tables"),
        ({"methods": [{"name": "chance"}]}, "chance is another row of the tables"),
        ({"methods": [{"name": "result.json"}]}, "result.json cannot name a method's folder"),
        ({"methods": [{"name": "report.html"}]}, "report.html cannot name a method's folder"),
        ({"methods": [{"name": "."}]}, ". cannot name a method's folder"),
        ({"methods": [{"name": ".."}]}, ".. cannot name a method's folder"),
        ({"questions": {"candidates": 3}}, "s_dpo takes 3 titles beside the target, and questions.candidates is 3"),
        ({"new_model": {"hidden": 64, "heads": 3}}, "hidden is 64 and heads 3; expected heads of an even whole size"),
        ({"new_model": {"hidden": 36, "heads": 4}}, "hidden is 36 and heads 4; expected heads of an even whole size"),
        ({"metods": []}, "metods: there is no such key (did you mean methods?)"),
        ({"questions": {"candidates": 1}}, "questions.candidates: input should be greater than or equal to 2"),
        (
            {"sft": {"training": {"max_step": 1}}},
            "sft.training.max_step: there is no such key (did you mean max_steps?)",
        ),
    ],
)
def test_a_wrong_configuration(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        make_config(tmp_path, **changes)
    assert message in str(error.value)


def test_missing_data(tmp_path):
    config = make_config(tmp_path)
    (tmp_path / "titles.csv").unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        recommend(config)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_advice_of_a_stages_run_can_be_followed(recipe_run, advised_sections):
    expected = {
        "model": {"training"},
        "sft": {"training", "lora"},
        "s_dpo": {"training", "lora", "objective"},
        "dpo": {"training", "lora", "objective"},
    }
    assert advised_sections(make_config(recipe_run[0]), stages, expected) == expected
