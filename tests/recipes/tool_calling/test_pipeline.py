"""Tests of the whole recipe with tiny models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.data.groups import as_text
from penchant.data.reading import read_groups
from penchant.data.review import Review
from penchant.errors import ConfigError, DataError
from penchant.evaluation.tool_calls.latency import LatencyReport
from penchant.evaluation.tool_calls.llama_cpp import LlamaCppAnswers
from penchant.evaluation.tool_calls.questions import read_bfcl, write_bfcl
from penchant.evaluation.tool_calls.reading import read_calls
from penchant.recipes.small_llama import Sizes, build_small_llama
from penchant.recipes.tool_calling import evaluation
from penchant.recipes.tool_calling.config import ToolCallingConfig
from penchant.recipes.tool_calling.data import function_names, held_out_function_names, split, variants
from penchant.recipes.tool_calling.pipeline import reward_of, stages, tool_calling
from penchant.recipes.tool_calling.variants import Vocabulary, right_answer

from .conftest import make_function, make_question

STEPS = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 2}
ALL_STEPS = {
    "sft": {"learns": "answers", "objective": {"name": "sft"}, "training": STEPS},
    "lora_sft": {"learns": "answers", "objective": {"name": "sft"}, "training": STEPS, "lora": {"rank": 2}},
    "dpo": {"learns": "pairs", "objective": {"name": "dpo"}, "training": STEPS},
    "rl": {
        "learns": "reward",
        "objective": {"name": "rloo"},
        "training": STEPS,
        "sampling": {"samples": 2, "max_new_tokens": 4},
    },
}
PATHS = {"sft": ["sft"], "lora_sft": ["lora_sft"], "dpo": ["sft", "dpo"], "hybrid": ["lora_sft", "dpo", "rl"]}


def make_config(folder, questions, **changes):
    write_bfcl(questions, folder / "questions")
    texts = [{"text": f"It is {n} days until the weather in Paris is hot."} for n in range(20)]
    (folder / "general.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    steps = [{"prompt": f"You see a door {n}.\n>", "completion": f" open door {n}"} for n in range(4)]
    (folder / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    paths = changes.get("paths", PATHS)
    values = {
        "questions": str(folder / "questions"),
        "trajectories": str(folder / "steps.jsonl"),
        "output": str(folder / "out"),
        "new_model": {
            "texts": str(folder / "general.jsonl"),
            "vocabulary": 320,
            "hidden": 32,
            "layers": 1,
            "heads": 2,
            "context": 512,
            "training": STEPS,
        },
        "variants": 2,
        "mismatched": 0.3,
        "pairs": {"corruptions": 2, "samples": 1, "variants": 1},
        "review": {"most": 5},
        "steps": {name: step for name, step in ALL_STEPS.items() if any(name in steps for steps in paths.values())},
        "paths": paths,
        "seeds": [3, 5],
        "answer_tokens": 6,
        "timed": 2,
        **changes,
    }
    return validated(ToolCallingConfig, values, "test")


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory, questions):
    folder = tmp_path_factory.mktemp("tools")
    return folder, tool_calling(make_config(folder, questions))


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_stage_writes_its_files(recipe_run, questions):
    folder, result = recipe_run
    out = folder / "out"
    early_stages = ["data", "base", "sft-3", "sft-5", "lora_sft-3", "lora_sft-5", "pairs", "review", "reward"]
    later_paths = ["sft-dpo", "lora_sft-dpo", "lora_sft-dpo-rl"]
    assert list(result) == [*early_stages, *(f"{name}-{seed}" for name in later_paths for seed in (3, 5)), "evaluation"]
    assert list(result) == [stage.name for stage in stages(make_config(folder, questions))]
    assert (out / "lora_sft-3" / "merged" / "model.safetensors").exists()
    assert (out / "lora_sft-dpo-rl-5" / "run" / "model.safetensors").exists()
    assert json.loads((out / "result.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert all(
        text in page
        for text in ("hybrid, int8", "Compared with base", "Compared with sft", "from words alone", "no right answer")
    )


def test_the_files_of_stage_data(recipe_run):
    out, result = recipe_run[0] / "out", recipe_run[1]["data"]
    parts = {name: read_bfcl(out / "data" / name)[0] for name in ("train", "validation", "test")}
    assert {name: sum(counts.values()) for name, counts in result["questions"].items()} == {
        name: len(part) for name, part in parts.items()
    }
    names = [{f.name for q in part for f in q.functions} for part in parts.values()]
    assert sum(map(len, names)) == len(set.union(*names))
    supervised = read_groups(out / "data" / "supervised_train.jsonl").groups
    assert len(supervised) == len(parts["train"]) + result["variants"] + 4
    # Variants with a repeated prompt are left out.
    assert 2 * len(parts["train"]) - 3 <= result["variants"] <= 2 * len(parts["train"])
    assert len({as_text(group.prompt) for group in supervised}) == len(supervised)
    assert [group.candidates[0] for group in supervised[-4:]] == [f" open door {n}" for n in range(4)]


def test_no_row_of_training_offers_a_function_that_is_held_out(recipe_run):
    """No file that steps learn from offers a held-out function's name, not even for a variant."""
    out = recipe_run[0] / "out"
    held_out = {
        f.name.lower()
        for part in ("validation", "test")
        for q in read_bfcl(out / "data" / part)[0]
        for f in q.functions
    }
    names_on_offer = set()
    for file in ("data/supervised_train.jsonl", "review/train.jsonl", "reward/train.jsonl"):
        for group in read_groups(out / file).groups:
            signatures = as_text(group.prompt).partition("\nQ: ")[0]
            names_on_offer |= {
                line.partition("(")[0].lower() for line in signatures.splitlines() if group.source != "trajectories"
            }
    assert len(names_on_offer) > 30
    assert not names_on_offer & held_out


def test_no_variant_has_a_held_out_name(questions, tmp_path, monkeypatch):
    monkeypatch.setattr(Vocabulary, "name", lambda self, draw, parts: f"add_{draw.choice(range(12))}")
    config = make_config(tmp_path, questions)
    tool_calling(config, only_stage="data")
    train = read_bfcl(tmp_path / "out" / "data" / "train")[0]
    held_out = held_out_function_names(tmp_path / "out" / "data")
    assert not function_names(variants(config, train, 20, 0, held_out)) & held_out
    assert function_names(variants(config, train, 20, 0, frozenset())) & held_out


def test_pairs_prefer_right_answers_to_wrong_ones(recipe_run):
    out, result = recipe_run[0] / "out", recipe_run[1]["pairs"]
    questions = {q.id: q for q in read_bfcl(out / "data" / "train")[0]}
    groups = read_groups(out / "pairs" / "all.jsonl").groups
    judged = 0
    for group in groups:
        question = questions.get(group.id)
        if question is not None:
            right, *wrong = (read_calls(text) for text in group.candidates)
            assert question.fault(right) is None
            assert all(question.fault(calls) is not None for calls in wrong)
            judged += 1
    assert judged == len(questions)
    assert sum(result["rejected"].values()) == sum(len(group.candidates) - 1 for group in groups)
    assert "the weaker model's own" in result["rejected"]
    assert {group.source for group in groups} >= {"trajectories", "irrelevance"}
    assert len(read_groups(out / "pairs" / "queue.jsonl").groups) == 5


def test_the_reward_agrees_with_the_scorer(recipe_run):
    out = recipe_run[0] / "out"
    score = reward_of(out / "reward" / "questions", "signatures")
    for question in read_bfcl(out / "data" / "train")[0]:
        [group] = [g for g in read_groups(out / "reward" / "train.jsonl").groups if g.id == question.id]
        assert score(group.prompt, [right_answer(question), " Sorry.", " [other(a=1)]"]) == [
            1.0, float(not question.accepted), 0.0
        ]  # fmt: skip
    with pytest.raises(DataError, match="a prompt belongs to no question"):
        score("Another?", ["f()"])


def test_shares_recomputed_from_the_saved_answers(recipe_run):
    out, result = recipe_run[0] / "out", recipe_run[1]["evaluation"]
    answers = {name: [rows(out / "evaluation" / f"{name}-{seed}.jsonl") for seed in (3, 5)] for name in PATHS}
    right = {
        name: np.array([[row["fault"] is None for row in of_seed] for of_seed in of_path])
        for name, of_path in answers.items()
    }
    for name, table in right.items():
        assert result["models"][name]["all"]["value"] == pytest.approx(table.mean())
    gained = (right["dpo"].astype(float) - right["sft"]).mean()
    assert result["differences"]["sft"]["all"]["dpo"]["value"] == pytest.approx(gained)
    assert set(result["differences"]["base"]["calls due"]) == set(PATHS)
    assert set(result["differences"]["sft"]["all"]) == set(PATHS) - {"sft"}
    float32, int8 = (result["edge"]["sft"][kind] for kind in ("float32", "int8"))
    assert int8["weight_bytes"] < float32["weight_bytes"]
    for report in (float32, int8):
        assert 0 <= report["above_bytes"] < report["peak_bytes"]
        assert report["timed"] == 2
    assert float32["right"]["value"] == pytest.approx(right["sft"][0].mean())


def test_finished_stages_are_skipped(assert_stages_done, recipe_run, questions):
    folder, result = recipe_run
    assert_stages_done(tool_calling, make_config(folder, questions), result)


def test_rejected_pairs_are_not_trained_on(questions, tmp_path):
    verdicts = tmp_path / "verdicts.jsonl"
    changes = {"paths": {"dpo": ["dpo"]}, "pairs": {"weaker": "base", "variants": 0}}
    tool_calling(make_config(tmp_path, questions, **changes), only_stage="data")
    tool_calling(make_config(tmp_path, questions, **changes), only_stage="base")
    tool_calling(make_config(tmp_path, questions, **changes), only_stage="pairs")
    queue = Review(read_groups(tmp_path / "out" / "pairs" / "queue.jsonl").groups, verdicts)
    for n, group in enumerate(queue.groups):
        queue.give(group, "reject" if n == 0 else "accept")
    review = {"most": 5, "verdicts": str(verdicts)}
    result = tool_calling(make_config(tmp_path, questions, **changes, review=review), only_stage="review")
    assert result["review"]["verdicts"] == {"accept": 4, "reject": 1, "waiting": 0}
    accepted_ids = {group.id for group in read_groups(tmp_path / "out" / "review" / "train.jsonl").groups}
    assert queue.groups[0].id not in accepted_ids


@pytest.mark.slow
def test_a_killed_recipe_resumes_to_the_same_result(recipe_run, questions, tmp_path, run_with_kills):
    # The answers are long, so that the last stage does not end before it is killed.
    changes = {"paths": {"sft": ["sft"], "hybrid": ["sft", "dpo", "rl"]}, "answer_tokens": 120}
    uninterrupted, interrupted = tmp_path / "straight", tmp_path / "broken"
    for folder in (uninterrupted, interrupted):
        folder.mkdir()
        config = make_config(folder, questions, **changes)
        (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    expected = tool_calling(make_config(uninterrupted, questions, **changes))
    arguments = ["recipe", "tool-calling", str(interrupted / "config.yaml")]
    # The stages of the second seed are those of the first with another number.
    names = [
        stage.name for stage in stages(make_config(interrupted, questions, **changes)) if not stage.name.endswith("-5")
    ]
    run_with_kills(arguments, interrupted / "out", names)
    result = json.loads((interrupted / "out" / "result.json").read_text())
    # Latency differs between runs.
    assert {k: v for k, v in result["evaluation"].items() if k != "edge"} == {
        k: v for k, v in expected["evaluation"].items() if k != "edge"
    }
    ours, theirs = (
        folder / "out" / "sft-dpo-rl-5" / "run" / "model.safetensors" for folder in (interrupted, uninterrupted)
    )
    assert ours.read_bytes() == theirs.read_bytes()


def step(name, **changes):
    return {"steps": ALL_STEPS | {name: ALL_STEPS[name] | changes}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1]}, "expected two seeds or more"),
        ({"paths": {"a": ["nothing"]}}, "paths.a: there is no step ['nothing']"),
        ({"paths": {"a": ["sft"], "b": ["sft"]}}, "each another sequence"),
        ({"paths": {"base": ["sft"]}}, "'base' is the name"),
        ({"paths": {"a-b": ["sft"]}}, "'a-b' cannot be a name"),
        ({"pairs": {"corruptions": 0, "samples": 0}}, "no rejected answers"),
        (
            {"pairs": {"weaker": "dpo"}},
            "pairs.weaker is 'dpo'; expected a path of one step that learns answers (here: sft",
        ),
        ({"pairs": {"weaker": "sfd"}}, "pairs.weaker is 'sfd'"),
        ({"pairs": {"weaker": "./no/such"}}, "pairs.weaker is './no/such'"),
        ({"pairs": {"weaker": "rl"}, "paths": {"rl": ["rl"], "dpo": ["dpo"]}}, "(here: none)"),
        ({"pairs": {"weaker": "only"}, "paths": {"only": ["dpo"]}}, "pairs.weaker is 'only'"),
        ({"new_model": {}}, "a base trained from scratch needs text"),
        ({"style": "messages"}, "a base trained from scratch has no chat template"),
        ({"steps": ALL_STEPS | {"more": ALL_STEPS["sft"]}}, "steps.more is in no path"),
        (step("sft", sampling={"samples": 2}), "steps.sft: sampling is of steps that learn from a reward"),
        (step("sft", training=STEPS | {"seed": 1}), "steps.sft.training.seed is not used"),
        (
            step("sft", objective={"name": "sfd"}),
            "steps.sft.objective.name: 'sfd' is no objective (did you mean sft?)",
        ),
        (step("dpo", objective={"name": "dpo", "beta": -1}), "steps.dpo: objective"),
        (
            step("sft", objective={"name": "dpo"}),
            "objective dpo compares answers, and every question has one right answer",
        ),
        (step("sft", objective={"name": "kto"}), "objective kto compares answers"),
        (step("dpo", objective={"name": "rloo"}), "objective rloo needs scores, and pairs have none"),
        (step("dpo", objective={"name": "multi_reference"}), "mixes several references"),
        (step("dpo", objective={"name": "bradley_terry"}), "trains a model that scores"),
        (step("rl", objective={"name": "kto"}), "objective kto needs answers to other prompts"),
        (
            step("rl", sampling={"samples": 1}),
            "objective rloo compares at least 2 answers, steps.rl.sampling.samples is 1",
        ),
    ],
)
def test_a_wrong_configuration(tmp_path, questions, changes, message):
    with pytest.raises(ConfigError) as error:
        make_config(tmp_path, questions, **changes)
    assert message in str(error.value)


@pytest.mark.parametrize("weaker", ["sft", "lora_sft", "base", "Some/model-1.5", "weak"])
def test_models_that_pairs_can_be_sampled_from(tmp_path, questions, monkeypatch, weaker):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weak").mkdir()
    assert make_config(tmp_path, questions, pairs={"weaker": weaker}).pairs.weaker == weaker


def test_no_weaker_model_is_needed_without_pairs(tmp_path, questions):
    config = make_config(tmp_path, questions, paths={"supervised": ["sft"]})
    assert [stage.name for stage in stages(config)] == ["data", "base", "sft-3", "sft-5", "evaluation"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # The earlier stages are the same, in the same order; every path is compared with the first one.
        ({"paths": {"dpo": PATHS["dpo"], **PATHS}}, "evaluation's order was"),
        (
            {"paths": {"lora_sft": ["sft"], "sft": ["lora_sft"], **dict([*PATHS.items()][2:])}},
            "pairs's weaker_steps was",
        ),
        ({"review": {"most": 5, "verdicts": "mistyped.jsonl"}}, "review's verdicts was null; now it is"),
    ],
)
def test_changed_settings_of_a_finished_stage_are_refused(recipe_run, questions, changes, message):
    folder, _ = recipe_run
    with pytest.raises(ConfigError) as error:
        tool_calling(make_config(folder, questions, **changes))
    assert message in str(error.value)


def test_the_seed_of_the_weaker_model_is_recorded(tmp_path, questions):
    settings = {stage.name: stage.settings for stage in stages(make_config(tmp_path, questions, seeds=[5, 3]))}
    assert settings["pairs"]["seed"] == 5
    assert settings["evaluation"]["seeds"] == [5, 3]


def test_missing_verdicts_stop_the_recipe_at_the_review(questions, tmp_path):
    changes = {"paths": {"dpo": ["dpo"]}, "pairs": {"weaker": "base", "variants": 0, "samples": 0}}
    review = {"most": 5, "verdicts": str(tmp_path / "none.jsonl")}
    with pytest.raises(DataError, match="there is no such file") as error:
        tool_calling(make_config(tmp_path, questions, **changes, review=review))
    assert "penchant data review" in str(error.value)
    assert (tmp_path / "out" / "pairs" / "queue.jsonl").exists()
    assert not (tmp_path / "out" / "dpo-3").exists()


@pytest.mark.slow
def test_constrained_answers(questions, tmp_path):
    """The setting changes the evaluation alone; the earlier stages are finished and skipped."""
    changes = {"paths": {"sft": ["sft"]}, "answer_tokens": 8}
    folder = tmp_path / "out" / "evaluation"
    result, answers = {}, {}
    for constrained in (False, True):
        result[constrained] = tool_calling(make_config(tmp_path, questions, **changes, constrained=constrained))
        answers[constrained] = [row["answer"].lstrip() for row in rows(folder / "sft-3.jsonl")]
        assert result[constrained]["evaluation"]["cut"]["sft"] == sum(
            not row["ended"] for row in rows(folder / "sft-3.jsonl")
        )
        shutil.rmtree(folder)
    assert all(answer.startswith("[") for answer in answers[True])
    assert not all(answer.startswith("[") for answer in answers[False])
    assert set(result[True]["evaluation"]["edge"]["sft"]) == {"float32", "int8"}


def test_llama_cpp(questions, tmp_path, monkeypatch):
    """Its own answers are judged: to each second question the right one."""
    config = make_config(tmp_path, questions, llama_cpp=True)
    assert stages(config)[-1].settings["llama_cpp"]
    assert "llama_cpp" not in stages(make_config(tmp_path, questions))[-1].settings
    build_small_llama(tmp_path / "model", ["[f(a=1)]"], Sizes(300, 32, 1, 2, 512), seed=0)
    report = LatencyReport((0.1, 0.2), 5.0, 4, 3, 2, 1)

    def answers(file, prompts, max_new_tokens):
        assert Path(file).read_bytes()[:4] == b"GGUF"
        assert (len(prompts), max_new_tokens) == (len(questions), config.answer_tokens)
        texts = (right_answer(question) if n % 2 else "[nothing(" for n, question in enumerate(questions))
        return LlamaCppAnswers(tuple(texts), report)

    monkeypatch.setattr(evaluation, "answer_with_llama_cpp", answers)
    row = evaluation._llama_cpp_report(config, str(tmp_path / "model"), questions)
    # Where no call is due an answer that cannot be read is right.
    right = sum(bool(n % 2) or not question.accepted for n, question in enumerate(questions))
    assert row["right"]["value"] == pytest.approx(right / len(questions))
    assert row["seconds"] == {"median": 0.1, "p95": 0.2}
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(ConfigError, match="need xllamacpp"):
        tool_calling(config, only_stage="data")


def test_questions_that_cannot_be_constrained_are_refused_before_training(questions, tmp_path, monkeypatch):
    java = make_question("j", "simple_java", "Add.", [make_function("A.f", x="long")], [{"A.f": {"x": [5]}}])
    with pytest.raises(DataError, match="answers in java cannot be constrained"):
        tool_calling(make_config(tmp_path, [*questions, java], constrained=True), only_stage="data")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "llguidance.hf", None)
    with pytest.raises(ConfigError, match="need llguidance"):
        tool_calling(make_config(tmp_path, questions, constrained=True), only_stage="data")
    tool_calling(make_config(tmp_path, questions), only_stage="data")


def test_a_right_answer_that_cannot_be_read_back_is_left_out(tmp_path, questions):
    """The name of its argument is a keyword of Python."""
    odd = make_question(
        "odd", "simple_python", "From?", [make_function("f", **{"from": "integer"})], [{"f": {"from": [1]}}]
    )
    result = tool_calling(make_config(tmp_path, [*questions, odd]), only_stage="data")["data"]
    assert result["no right answer"] == 1
    assert sum(sum(part.values()) for part in result["questions"].values()) == len(questions)


def test_trajectories_of_several_answers(tmp_path, questions):
    config = make_config(tmp_path, questions)
    (tmp_path / "steps.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}))
    with pytest.raises(DataError, match="a step has several answers"):
        tool_calling(config, only_stage="data")


def test_from_the_command_line(recipe_run, questions, capsys):
    folder, _ = recipe_run
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(make_config(folder, questions).model_dump(mode="json"), sort_keys=False))
    assert run(["recipe", "tool-calling", str(config)]) == 0
    assert "hybrid" in capsys.readouterr().out
    assert run(["recipe", "tool-calling", str(config), "variants=5"]) == 2
    assert "data's variants was" in capsys.readouterr().err


class TestLengths:
    """A row that is too long stops the recipe in its first stage."""

    @pytest.mark.parametrize("part", [0, 1])
    def test_a_question(self, tmp_path, questions, part):
        """The long question is in training and validation, or in the test, which only the last stage reads."""
        candidates = (
            make_question(
                f"l{n}",
                "simple_python",
                f"Is Oslo {'very ' * 500}loud?",
                [make_function(f"long{n}", city="string")],
                [{f"long{n}": {"city": ["Oslo"]}}],
            )
            for n in range(50)
        )
        long = next(long for long in candidates if long in split([*questions, long], 0.2, 0)[part])
        with pytest.raises(DataError, match=r"data.max_length is 512") as error:
            tool_calling(make_config(tmp_path, [*questions, long]))
        source = ("supervised_train.jsonl of stage data", "the questions of stage evaluation")[part]
        assert (
            error.value.where == f"{source}, as the base trained from scratch (context 512) reads it, group {long.id}"
        )
        assert [item.name for item in (tmp_path / "out").iterdir()] == ["data"]
        truncation = {"truncation": "keep_end_of_prompt"}
        assert list(tool_calling(make_config(tmp_path, [*questions, long], data=truncation), only_stage="data")) == [
            "data"
        ]

    def test_a_prompt_without_room_for_a_drawn_answer(self, tmp_path, questions):
        steps = {**ALL_STEPS, "rl": {**ALL_STEPS["rl"], "sampling": {"samples": 2, "max_new_tokens": 480}}}
        config = make_config(tmp_path, questions)
        config = validated(ToolCallingConfig, {**config.model_dump(mode="json"), "steps": steps}, "test")
        with pytest.raises(ConfigError, match=r"steps.rl.sampling.max_new_tokens=480") as error:
            tool_calling(config)
        room = int(error.value.fix.partition("steps.rl.sampling.max_new_tokens=")[2].partition(",")[0])
        assert 0 < room < 480


def test_advice_of_a_stages_run_can_be_followed(recipe_run, questions, advised_sections):
    expected = {
        "base": {"training"},
        "lora_sft-3": {"training", "lora"},
        "sft-dpo-5": {"training", "lora", "objective"},
        "lora_sft-dpo-rl-3": {"training", "lora", "sampling"},
    }
    assert advised_sections(make_config(recipe_run[0], questions), stages, expected) == expected
