"""Loss and perplexity of responses that stand alone, against transformers' own loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers as hf

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.data.groups import PreferenceGroup
from penchant.evaluation.preferences import ScoredGroup, evaluate_preferences, learnt_candidates, likelihood
from penchant.models.loading import load_tokenizer
from penchant.training.report import write_run_report
from penchant.training.run import train

ROWS = [
    {"prompt": "the old cat", "completion": " sees a big dog"},
    {"prompt": "it runs", "completion": " to the river by a tree"},
    {"prompt": "bird", "completion": " sings"},
    {"prompt": "a dog", "completion": " likes the small house"},
]


@pytest.fixture
def singles(tmp_path):
    file = tmp_path / "singles.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return file


def by_transformers(folder) -> tuple[float, float]:
    """Mean nats a token over all responses' tokens, and its exp, by the library's own loss of each row."""
    model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    nats, tokens = 0.0, 0
    for row in ROWS:
        prompt = tokenizer(row["prompt"]).input_ids
        ids = [*tokenizer(row["prompt"] + row["completion"]).input_ids, tokenizer.eos_token_id]
        labels = [-100] * len(prompt) + ids[len(prompt) :]
        n = len(ids) - len(prompt)
        with torch.no_grad():
            nats += n * float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)
        tokens += n
    return nats / tokens, math.exp(nats / tokens)


def test_evaluate_of_single_responses(tiny_model, singles, capsys):
    assert run(["evaluate", str(tiny_model), "--data", str(singles), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    loss, perplexity = by_transformers(tiny_model)
    assert document["eval_loss"]["value"] == pytest.approx(loss, rel=1e-5)
    assert document["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5)
    assert document["perplexity"]["low"] < perplexity < document["perplexity"]["high"]
    assert document["eval_loss"]["n"] == 4
    assert (document["groups"], document["pairs"], document["accuracy"]["value"]) == (0, 0, None)
    assert "nats per token" in document["definitions"]["eval_loss"]
    assert run(["evaluate", str(tiny_model), "--data", str(singles)]) == 0
    table = capsys.readouterr().out
    assert f"{perplexity:.4f}" in table
    assert "accuracy" not in table
    assert "4 groups, none with a preferred response and another" in table


def test_a_run_of_sft_on_single_responses(write_config, singles, tmp_path, notices):
    data = {"train": str(singles), "held_out": str(singles)}
    file = write_config(objective={"name": "sft"}, data=data, training={"max_steps": 2, "learning_rate": 1e-2})
    folder = train(load_config(file))
    notices.clear()
    result = write_run_report(folder)
    loss, perplexity = by_transformers(folder)
    assert result.trained_report.metrics["eval_loss"].value == pytest.approx(loss, rel=1e-5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line][-1] == pytest.approx(loss, rel=1e-5)
    document = json.loads((folder / "evaluation.json").read_text())
    assert document["after"]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5)
    assert document["before"]["perplexity"]["value"] > perplexity
    (held_out,) = [line for line in notices.messages if line.startswith("held-out: ")]
    assert held_out.startswith(f"held-out: 4 groups without a pair, eval_loss {loss:.4f} [")
    assert f"perplexity {perplexity:.4f}" in held_out
    page = (folder / "report.html").read_text()
    assert f"{perplexity:.4f}" in page
    assert "0 groups" not in page


@pytest.mark.slow
def test_a_run_of_sft_on_pairs_tells_the_chosens_too(write_config):
    folder = train(load_config(write_config(objective={"name": "sft"}, training={"max_steps": 2})))
    result = write_run_report(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert result.trained_report.groups > 0
    assert result.trained_report.metrics["eval_loss"].value == pytest.approx(
        [line["eval_loss"] for line in lines if "eval_loss" in line][-1], rel=1e-5
    )
    assert "eval_loss" in result.trained_report.definitions


@pytest.mark.slow
def test_other_methods_on_pairs_are_as_before(write_config):
    result = write_run_report(train(load_config(write_config())))
    assert "perplexity" not in result.trained_report.metrics


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        ({}, [0, 1, 2]),
        ({"preferred": 1}, [1]),
        ({"scores": (1.0, 1.0, 0.0)}, [0, 1]),
        ({"labels": (True, False, True)}, [0, 2]),
        ({"comparisons": ()}, [0, 1, 2]),
    ],
)
def test_what_supervised_tuning_learns(preference, expected):
    assert learnt_candidates(PreferenceGroup("p", ("a", "b", "c"), **preference)) == expected


def test_single_responses_beside_pairs_have_their_own_loss():
    """The pair is measured by its preference, the single response by its loss; the undesirable one by nothing."""
    scored = [
        ScoredGroup(PreferenceGroup("p", ("a", "b"), preferred=0), (-5.0, -8.0), (5, 4), None, 1),
        ScoredGroup(PreferenceGroup("q", ("a",)), (-6.0,), (3,), None, 1),
        ScoredGroup(PreferenceGroup("r", ("a",), labels=(False,)), (-9.0,), (1,), None, 1),
    ]
    report = evaluate_preferences(scored)
    assert (report.accuracy.value, report.metrics["eval_loss"].value, report.metrics["eval_loss"].n) == (1.0, 2.0, 1)
    assert report.metrics["perplexity"].value == pytest.approx(math.exp(2))


def test_the_interval_resamples_prompts():
    log_probs, tokens = [[-4.0], [-1.0], [-9.0]], [[2], [1], [3]]
    shared, apart = (
        likelihood(
            [PreferenceGroup(prompt, (text,)) for prompt, text in zip(prompts, "abc", strict=True)], log_probs, tokens
        )
        for prompts in (("p", "p", "q"), ("p", "q", "r"))
    )
    for metrics in (shared, apart):
        assert metrics["eval_loss"].value == pytest.approx(14 / 6)
    assert (shared["eval_loss"].low, shared["eval_loss"].high) == pytest.approx((5 / 3, 3.0))
    assert (apart["eval_loss"].low, apart["eval_loss"].high) == pytest.approx((1.0, 3.0))


def test_a_perplexity_beyond_all_numbers_is_the_largest_that_is_told():
    metrics = likelihood([PreferenceGroup("p", ("a",))], [[-1e6]], [[1]])
    assert metrics["perplexity"].value == math.exp(700)
