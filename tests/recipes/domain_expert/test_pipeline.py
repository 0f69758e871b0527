"""Tests of the whole recipe on a small invented domain."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run
from penchant.config.section import validated
from penchant.data.reading import read_groups
from penchant.errors import ConfigError, DataError, ModelError
from penchant.evaluation.text_similarity import rouge_l
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.pipeline import domain_expert, stages
from penchant.recipes.domain_expert.routing import PromptSet, choose_threshold, route, routing_groups
from penchant.recipes.reading import compute_log_probs
from penchant.serving.router import Decision, load_router

STEPS = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 4}
WORDS = ["loan", "rate", "lender", "escrow", "fee", "title", "notice", "borrower", "closing", "servicer"]


def sentence(draw: random.Random, n: int) -> str:
    return " ".join(draw.choices(WORDS, k=n)) + "."


def make_config(folder: Path, **changes: object) -> DomainExpertConfig:
    draw = random.Random(0)
    texts = [{"text": sentence(draw, 20), "part": f"p{n % 12}"} for n in range(60)]
    definitions = [{"text": sentence(draw, 12)} for _ in range(3)]
    texts += [{"text": f"Here. {definition['text']}", "part": "p0"} for definition in definitions]
    sets = {
        "texts": texts,
        "excluded": definitions,
        "general": [{"text": sentence(draw, 15)} for _ in range(40)],
        "instructions": [
            {"prompt": f"Repeat {word} {n}:", "completion": f" {word}"} for n, word in enumerate(WORDS * 3)
        ],
        "tasks": [{"prompt": f"Letters of {a} {b}:", "completion": f" {len(a)}"} for a in WORDS for b in WORDS[:3]],
        "summaries": [
            {"prompt": f"Sum up: {sentence(draw, 6)} {a} {n}.", "completion": f" {a}"} for a in WORDS for n in range(3)
        ],
        "preferences": [
            {"prompt": f"What is {a} for {b}?", "chosen": f" a {b}", "rejected": f" no {a}"}
            for a in WORDS
            for b in WORDS[:3]
        ],
    }
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "texts": {
            "file": str(folder / "texts.jsonl"),
            "section": "part",
            "excluded": str(folder / "excluded.jsonl"),
            "held_out": 0.3,
        },
        **{name: str(folder / f"{name}.jsonl") for name in ("instructions", "tasks", "summaries", "preferences")},
        "output": str(folder / "out"),
        "new_models": {
            "texts": str(folder / "general.jsonl"),
            "vocabulary": 320,
            "hidden": 32,
            "layers": 2,
            "heads": 2,
            "context": 256,
            "training": STEPS,
            "instruct": STEPS,
        },
        "adaptation": {"training": STEPS},
        "residual": {"scales": [0, 1]},
        "conversation": {"training": STEPS},
        "structured": {"training": STEPS},
        "router": {"shots": 2, "taught": 3},
        "answers": 4,
        "answer_tokens": 5,
        **changes,
    }
    return validated(DomainExpertConfig, values, "test")


@pytest.fixture(scope="module")
def recipe_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain")
    return folder, domain_expert(make_config(folder))


def test_every_stage_writes_its_files(recipe_run):
    folder, result = recipe_run
    out = folder / "out"
    names = ["data", "base", "instruct", "adapted", "residual", "conversation", "structured", "single", "router"]
    names.append("evaluation")
    assert list(result) == names == [stage.name for stage in stages(make_config(folder))]
    for path in (
        "base/run",
        "instruct/run",
        "adapted/run",
        "residual/model",
        "conversation/run",
        "structured/run",
        "single/run",
    ):
        assert (out / path / "model.safetensors").exists()
    assert sorted(item.name for item in (out / "residual").iterdir()) == ["model", "stage.json"]
    assert json.loads((out / "result.json").read_text()) == result
    page = (out / "report.html").read_text()
    assert all(word in page for word in ("routed experts", "instructions_f1", "scale of the residual"))


def test_the_files_of_stage_data(recipe_run):
    folder, result = recipe_run
    out = folder / "out" / "data"
    assert result["data"]["left_out"] == {"held out for tests": 3, "near repeats": 0}
    for name in ("instructions", "preferences", "tasks", "summaries"):
        parts = [
            {group.prompt for group in read_groups(out / f"{name}_{part}.jsonl").groups}
            for part in ("train", "validation", "test")
        ]
        assert [len(part) for part in parts] == [18, 6, 6]
        assert len(set.union(*parts)) == 30


def test_training_data_of_the_structured_expert(recipe_run):
    """It learns its tasks, and the router's prompt about requests that are neither examples nor test requests."""
    out = recipe_run[0] / "out"
    groups = read_groups(out / "structured" / "train.jsonl").groups
    expected = [read_groups(out / "data" / f"{name}_train.jsonl").groups for name in ("tasks", "summaries")]
    assert [group.prompt for group in groups[:36]] == [group.prompt for part in expected for group in part]
    held_out = read_groups(out / "structured" / "validation.jsonl").groups
    assert len(held_out) == 12
    routing_groups = groups[36:]
    assert [group.candidates for group in routing_groups] == [(" question",)] * 3 + [(" task",)] * 3
    router = load_router(out / "router")
    example_texts = {text for text, _ in router.examples}
    prompts_by_set = {
        name: {group.prompt for group in read_groups(out / "data" / f"{name}_train.jsonl").groups}
        for name in ("preferences", "tasks", "summaries")
    }
    # The sets of one expert take turns, in the examples and after them.
    expected_sets = ["preferences"] * 3 + ["tasks", "summaries", "tasks"]
    for group, name in zip(routing_groups, expected_sets, strict=True):
        assert group.prompt in {router.question(prompt).prompt for prompt in prompts_by_set[name] - example_texts}
    examples_of = {name: len(prompts & example_texts) for name, prompts in prompts_by_set.items()}
    assert examples_of == {"preferences": 2, "tasks": 1, "summaries": 1}


def test_a_residual_of_scale_0_is_the_adapted_model(recipe_run):
    _, result = recipe_run
    zero_scale = result["residual"]["scales"][0]
    assert zero_scale["scale"] == 0
    assert zero_scale["perplexity"]["value"] == pytest.approx(result["adapted"]["perplexity"]["value"])
    assert result["evaluation"]["models"]["adapted"]["perplexity"] == result["adapted"]["perplexity"]
    assert result["evaluation"]["models"]["base"]["perplexity"] == result["adapted"]["perplexity_before"]


def test_decisions_and_their_counts_agree(recipe_run):
    folder, result = recipe_run
    rows = [json.loads(line) for line in (folder / "out" / "router" / "decisions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    right = sum(row["is"] == row["likeliest"] for row in rows)
    assert result["router"]["accuracy"]["value"] == pytest.approx(right / 12)
    confusion = result["router"]["confusion"]
    assert sum(confusion[name][name] for name in confusion) == right
    assert sum(sum(row.values()) for row in confusion.values()) == 12
    threshold = load_router(folder / "out" / "router").threshold
    assert result["router"]["threshold"] == threshold
    for row in rows:
        assert row["expert"] == (row["likeliest"] if row["confidence"] >= threshold else "conversation")
    assert sum(row["confidence"] < threshold for row in rows) == result["router"]["fell_back"]


def test_the_router_may_compare_labels_per_token(recipe_run):
    """Its decisions agree with the labels' log-probs per token, end tokens included."""
    folder, _ = recipe_run
    out = folder / "out"
    config = make_config(folder, router={"shots": 2, "taught": 3, "normalize": "mean", "threshold": 0.6})
    route(config, out / "router_per_token")
    router, summed = load_router(out / "router_per_token"), load_router(out / "router")
    model = str(out / "structured" / "run")
    rows = [json.loads(line) for line in (out / "router_per_token" / "decisions.jsonl").read_text().splitlines()]
    scored = compute_log_probs(
        model, [router.question(row["request"]) for row in rows], config.token_budget, config.data
    )
    assert router.lengths == dict(zip(router.names, scored[0].tokens, strict=True))
    assert (router.prior, router.threshold) == (pytest.approx(summed.prior), 0.6)
    for row, labels in zip(rows, scored, strict=True):
        values = [
            (log_prob - router.prior[name]) / tokens
            for name, log_prob, tokens in zip(router.names, labels.log_probs, labels.tokens, strict=True)
        ]
        assert row["confidence"] == pytest.approx(1 / (1 + math.exp(min(values) - max(values))), rel=1e-6)


def test_the_routed_experts_have_the_chosen_experts_metrics(recipe_run):
    folder, result = recipe_run
    out = folder / "out"
    rows = [json.loads(line) for line in (out / "router" / "decisions.jsonl").read_text().splitlines()]
    if {row["expert"] for row in rows} == {"conversation"}:
        models = result["evaluation"]["models"]
        assert models["routed experts"]["tasks_f1"] == models["conversation"]["tasks_f1"]


def test_two_experts_are_compared_with_one_model_prompt_by_prompt(recipe_run):
    """The differences, computed again from the written answers."""
    folder, result = recipe_run
    out = folder / "out"

    def rows(file):
        return [json.loads(line) for line in (out / file).read_text().splitlines()]

    chosen = {row["request"]: row["expert"] for row in rows("router/decisions.jsonl")}
    answers = {name: rows(f"evaluation/{name}.jsonl") for name in ("conversation", "structured", "single")}
    for name in ("tasks", "summaries", "preferences"):
        references = PromptSet.from_file(out / "data" / f"{name}_test.jsonl", 4).references
        numbers = [n for n, row in enumerate(answers["single"]) if row["set"] == name]
        differences = [
            rouge_l(answers[chosen[answers["single"][n]["prompt"]]][n]["answer"], reference)
            - rouge_l(answers["single"][n]["answer"], reference)
            for n, reference in zip(numbers, references, strict=True)
        ]
        difference = result["evaluation"]["experts_over_single"][f"{name}_rouge_l"]
        assert difference["value"] == pytest.approx(sum(differences) / 4)
        assert difference["n"] == 4
    assert "instructions_f1" not in result["evaluation"]["experts_over_single"]


def test_one_model_starts_from_the_structured_expert(recipe_run):
    config = yaml.safe_load((recipe_run[0] / "out" / "single" / "run" / "config.yaml").read_text())
    assert config["model"] == str(recipe_run[0] / "out" / "structured" / "run")
    assert config["objective"]["name"] == "dpo"
    assert config["data"]["train"].endswith("preferences_train.jsonl")


def test_a_named_base_without_a_sibling_is_taught_the_instructions(recipe_run, tmp_path):
    base = str(recipe_run[0] / "out" / "base" / "run")
    config = make_config(tmp_path, base=base, new_models={"instruct": STEPS})
    assert [stage.name for stage in stages(config)][:3] == ["data", "instruct", "adapted"]
    for name in ("data", "instruct"):
        domain_expert(config, only_stage=name)
    ran = yaml.safe_load((tmp_path / "out" / "instruct" / "run" / "config.yaml").read_text())
    assert (ran["model"], ran["training"]["max_steps"]) == (base, 4)
    assert ran["data"]["train"].endswith("instructions_train.jsonl")


@pytest.mark.parametrize(
    ("likeliest", "confidences", "threshold"),
    [
        # All right: nothing need fall back.
        (["structured", "conversation"], [0.9, 0.6], 0.0),
        # The wrong ones, at 0.55 and 0.7, fall back to the right expert; the right one at 0.8 does not.
        (["structured", "structured", "structured"], [0.55, 0.7, 0.8], 0.75),
        # All are wrong, and all fall back.
        (["structured", "structured"], [0.6, 0.9], 0.95),
    ],
)
def test_the_threshold_by_which_most_requests_reach_the_right_expert(likeliest, confidences, threshold):
    right = ["structured", "conversation"] if len(set(likeliest)) == 2 else ["conversation"] * len(likeliest)
    if len(likeliest) == 3:
        right[2] = "structured"
    decisions = [Decision(expert, expert, c) for expert, c in zip(likeliest, confidences, strict=True)]
    assert choose_threshold(decisions, right, "conversation") == pytest.approx(threshold)


def test_the_threshold_is_chosen_on_validation_requests(recipe_run, tmp_path):
    """Another validation set gives another threshold, with the same test set."""
    out = recipe_run[0] / "out"
    model = str(out / "structured" / "run")
    router = load_router(out / "router")
    config = make_config(recipe_run[0])
    requests = [
        (group.prompt, expert)
        for expert, name in (("conversation", "preferences"), ("structured", "tasks"), ("structured", "summaries"))
        for group in read_groups(out / "data" / f"{name}_validation.jsonl").groups[:4]
    ]
    scored = compute_log_probs(model, [router.question(text) for text, _ in requests], config.token_budget, config.data)
    decisions = [router.decide(labels.log_probs) for labels in scored]
    assert router.threshold == choose_threshold(decisions, [expert for _, expert in requests], "conversation")


def test_a_chat_model_is_asked_in_messages(recipe_run):
    config = make_config(recipe_run[0], data={"as_chat": "true"})
    groups = routing_groups(config, recipe_run[0] / "out" / "data")
    assert [group.candidates[0][0]["content"] for group in groups] == ["question"] * 3 + ["task"] * 3
    assert [(message["role"], message["content"][-5:]) for message in groups[0].prompt] == [("user", "Kind:")]


def test_finished_stages_are_skipped(assert_stages_done, recipe_run):
    folder, result = recipe_run
    assert_stages_done(domain_expert, make_config(folder), result)


@pytest.mark.slow
def test_named_models_and_adapters(recipe_run, tmp_path):
    out = recipe_run[0] / "out"
    lora = {"training": STEPS, "lora": {"rank": 2}}
    folders = {"base": str(out / "base" / "run"), "instruct": str(out / "instruct" / "run")}
    result = domain_expert(
        make_config(tmp_path, **folders, adaptation=lora, conversation=lora, structured=lora, residual={"scales": [1]})
    )
    assert "base" not in result
    assert (tmp_path / "out" / "adapted" / "merged" / "model.safetensors").exists()
    assert (tmp_path / "out" / "structured" / "run" / "adapter_model.safetensors").exists()
    assert result["residual"]["chosen"] == 1


@pytest.mark.slow
def test_a_judge_without_verdicts_and_bert_score(recipe_run, tmp_path, chat_endpoint):
    """Failed verdicts count as ties and are reported."""
    shutil.copytree(recipe_run[0] / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "evaluation")
    shutil.copytree(recipe_run[0], tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("out"))
    judge = {"url": chat_endpoint(lambda question: "Hm."), "model": "m", "retries": 0}
    encoder = {"model": str(tmp_path / "out" / "base" / "run"), "layers": 1}
    # Of the preferences no rating can be read; 9 is beyond the rubric.
    by_word = {"Letters": "It counts. [[2]]", "Repeat": "[[1]] or [[4.5]]", "Sum up": "[[5]]", "What is": "[[9]]"}
    url = chat_endpoint(lambda question: next(reply for word, reply in by_word.items() if word in question))
    rating = {"url": url, "model": "m", "retries": 0}
    evaluated = domain_expert(make_config(tmp_path, judge=judge, rating=rating, bert_score=encoder))["evaluation"]
    result, judged = evaluated["models"], evaluated["judged"]
    assert set(judged) == {"base", "adapted", "residual", "conversation", "structured", "single"}
    assert (judged["structured"]["rate"]["value"], judged["structured"]["failed"]) == (0.5, 8)
    assert "By the judge" in (tmp_path / "out" / "report.html").read_text()
    assert 0 <= result["routed experts"]["tasks_bert_score"]["value"] <= 1
    ratings = {name: result["single"][f"{name}_rating"]["value"] for name in ("tasks", "instructions", "summaries")}
    assert ratings == {"tasks": 2, "instructions": 4.5, "summaries": 5}
    assert result["single"]["preferences_rating"] == {"value": None, "low": None, "high": None, "n": 0}
    assert evaluated["unrated"] == 8 * 4
    assert evaluated["experts_over_single"]["tasks_rating"]["value"] == 0
    assert result["base"]["tasks_exact"] == recipe_run[1]["evaluation"]["models"]["base"]["tasks_exact"]


@pytest.mark.slow
def test_a_killed_recipe_resumes_to_the_same_result(recipe_run, tmp_path, run_with_kills):
    config, out, undisturbed = tmp_path / "config.yaml", tmp_path / "out", recipe_run[0] / "out"
    config.write_text(yaml.safe_dump(make_config(tmp_path).model_dump(mode="json")))
    arguments = ["recipe", "domain-expert", str(config)]
    run_with_kills(arguments, out, [stage.name for stage in stages(make_config(tmp_path))])
    assert (out / "result.json").read_text() == (undisturbed / "result.json").read_text()
    for path in ("residual/model", "conversation/run", "structured/run"):
        ours, theirs = (folder / path / "model.safetensors" for folder in (out, undisturbed))
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"instruct": "here"}, "instruct is the sibling of a base, which is not named"),
        ({"new_models": {}}, "a base trained from scratch needs general text"),
        ({"residual": {"scales": []}}, "expected one scale or more"),
        ({"router": {"names": {"conversation": "a", "structured": "a"}}}, "expected two different names"),
        ({"router": {"names": {"conversation": "a"}}}, "expected two different names"),
    ],
)
def test_a_wrong_configuration(tmp_path, changes, message):
    with pytest.raises(ConfigError) as error:
        make_config(tmp_path, **changes)
    assert message in str(error.value)


def test_groups_without_a_preference_are_refused(tmp_path):
    config = make_config(tmp_path, preferences=str(tmp_path / "tasks.jsonl"))
    with pytest.raises(DataError, match="a group prefers no answer"):
        domain_expert(config)


@pytest.mark.slow
def test_base_and_instruct_of_different_shapes(recipe_run, tmp_path, tiny_model):
    folders = {"base": str(recipe_run[0] / "out" / "base" / "run"), "instruct": str(tiny_model)}
    with pytest.raises(ModelError):
        domain_expert(make_config(tmp_path, **folders))


def test_from_the_command_line(recipe_run, capsys):
    folder, _ = recipe_run
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(make_config(folder).model_dump(mode="json")))
    assert run(["recipe", "domain-expert", str(config)]) == 0
    assert "came back" in capsys.readouterr().out
    assert run(["recipe", "domain-expert", str(config), "residual.scales=[0, 2]"]) == 2
    assert "residual's scales was" in capsys.readouterr().err


def test_advice_of_a_stages_run_can_be_followed(recipe_run, advised_sections):
    expected = {
        "base": {"training"},
        "instruct": {"training"},
        "adapted": {"training", "lora"},
        "conversation": {"training", "lora", "objective"},
        "structured": {"training", "lora"},
        "single": {"training", "lora", "objective"},
    }
    assert advised_sections(make_config(recipe_run[0]), stages, expected) == expected
