"""Every verb on a tiny model, through the command line as a person types it."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from penchant.cli.main import run

Typed = Callable[..., tuple[str, str]]
ESTIMATE = {"value", "low", "high", "n"}


@pytest.fixture
def run_verb(capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a command line that must succeed, and gives back standard output and standard error."""

    def type_(*arguments: object) -> tuple[str, str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return captured.out, captured.err

    return type_


@pytest.fixture
def run_json(run_verb: Typed) -> Callable[..., Any]:
    """The one JSON document a verb prints on standard output with --json."""
    return lambda *arguments: json.loads(run_verb(*arguments, "--json")[0])


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_pairs: Path) -> dict[str, Any]:
    """One run with --json: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    values = {
        "model": str(tiny_model),
        "data": {"train": str(tiny_pairs), "held_out": 0.25},
        "output": str(folder / "run"),
        "objective": {"name": "dpo"},
        "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3},
        "evaluation": {"samples": 1, "sample_tokens": 4},
        "checkpoints": {"every": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("PENCHANT_CACHE", str(folder / "cache"))
        assert run(["train", str(folder / "run.yaml"), "training.seed=3", "--json"]) == 0
    return {"folder": folder / "run", "out": out.getvalue(), "err": err.getvalue()}


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


class TestTrain:
    def test_json_is_one_document_and_people_read_standard_error(self, trained_run):
        document = json.loads(trained_run["out"])
        assert document["output"] == str(trained_run["folder"])
        assert document["steps"] == 4
        assert document["loss"] == rows(trained_run["folder"] / "metrics.jsonl")[-1].get("loss", document["loss"])
        assert document["before"]["margin"]["value"] == 0
        assert document["after"]["margin"]["value"] > 0
        assert "48 groups, format pairs" in trained_run["err"]
        assert "held out 12 of 48 groups, by prompt" in trained_run["err"]
        assert "report.html" in trained_run["err"]

    def test_override_is_in_the_folder(self, trained_run):
        assert yaml.safe_load((trained_run["folder"] / "config.yaml").read_text())["training"]["seed"] == 3

    def test_evaluation_file_equals_the_printed_document(self, trained_run):
        document = json.loads(trained_run["out"])
        saved = json.loads((trained_run["folder"] / "evaluation.json").read_text())
        assert saved == {name: document[name] for name in ("before", "after")}

    def test_people_get_a_table(self, run_verb, write_config):
        out, _ = run_verb("train", write_config(), "training.max_steps=1")
        assert "48 groups, format pairs" in out
        assert "1 steps" in out
        assert "accuracy" in out

    def test_resuming_a_finished_run_changes_nothing(self, run_json, trained_run):
        folder = trained_run["folder"]
        contents = {
            name: (folder / name).read_bytes() for name in ("metrics.jsonl", "model.safetensors", "config.yaml")
        }
        document = run_json("train", folder, "--resume")
        assert document == json.loads(trained_run["out"])
        assert {name: (folder / name).read_bytes() for name in contents} == contents

    @pytest.mark.slow_but("null")
    @pytest.mark.parametrize("name", ["2024", "2026-05-01", "runs/a #2", "null", "a: b", "[1"])
    def test_a_resumed_folder_may_have_any_name(self, run_json, trained_run, tmp_path, monkeypatch, name):
        """Names that YAML reads as a number, a date, a comment, nothing, keys, or not at all."""
        shutil.copytree(trained_run["folder"], tmp_path / name)
        monkeypatch.chdir(tmp_path)
        (tmp_path / name / "model.safetensors").unlink()
        document = run_json("train", name, "--resume")
        assert document == {**json.loads(trained_run["out"]), "output": name}
        resumed_weights, original_weights = (
            folder / "model.safetensors" for folder in (tmp_path / name, trained_run["folder"])
        )
        assert resumed_weights.read_bytes() == original_weights.read_bytes()
        assert [folder.name for folder in tmp_path.iterdir()] == [name.split("/")[0]]


class TestPlan:
    @pytest.fixture(autouse=True)
    def _quickly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("penchant.planning.plan.SECONDS", 0.02)

    def test_json(self, run_json, write_config):
        document = run_json("plan", write_config(), "training.max_steps=3")
        assert document["steps"] == 3
        assert document["fits"] is True
        assert document["proposals"] == []
        memory = document["memory_mb"]
        assert memory["peak"] >= memory["baseline"] + memory["weights"]
        assert document["seconds"] == pytest.approx(sum(document["seconds_by_phase"].values()), abs=0.01)

    @pytest.mark.slow
    def test_people_get_tables(self, run_verb, write_config):
        out, _ = run_verb("plan", write_config())
        for words in ("gradients", "optimizer's moments", "peak", "available", "6 steps", "it fits", "up to 60 % more"):
            assert words in out

    def test_missing_model_exits_with_2(self, write_config, capsys):
        assert run(["plan", str(write_config()), "model=/no/such/folder"]) == 2
        assert "there is no such folder" in capsys.readouterr().err


class TestEvaluate:
    def test_without_reference(self, run_json, tiny_model, tiny_pairs):
        document = run_json("evaluate", tiny_model, "--data", tiny_pairs)
        assert (document["groups"], document["pairs"], document["prompts"]) == (48, 48, 24)
        for name in ("accuracy", "auc", "margin"):
            assert document[name].keys() == ESTIMATE
            assert document[name]["low"] <= document[name]["value"] <= document[name]["high"]
        assert document["accuracy"]["n"] == 48
        assert document["margin"] == document["log_prob_margin"]
        assert document["calibration"] is None

    def test_model_as_its_own_reference_gives_ties(self, run_json, tiny_model, tiny_pairs):
        document = run_json("evaluate", tiny_model, "--data", tiny_pairs, "--reference", tiny_model)
        assert document["ties"]["value"] == 1.0
        assert document["margin"]["value"] == document["margin"]["low"] == document["margin"]["high"] == 0
        assert document["log_prob_margin"]["value"] != 0

    def test_trained_prefers_what_it_was_trained_on(self, run_json, trained_run, tiny_model, tiny_pairs):
        document = run_json("evaluate", trained_run["folder"], "--data", tiny_pairs, "--reference", tiny_model)
        assert document["margin"]["low"] > 0
        assert document["accuracy"]["low"] > 0.5

    def test_people_get_a_table(self, run_verb, tiny_model, tiny_pairs):
        out, _ = run_verb("evaluate", tiny_model, "--data", tiny_pairs)
        assert "48 groups, format pairs" in out
        assert "accuracy" in out

    def test_per_example_lines_equal_a_plain_forward(self, run_json, trained_run, tiny_model, tiny_pairs, tmp_path):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        file = tmp_path / "lines.jsonl"
        arguments = ["--data", tiny_pairs, "--reference", tiny_model, "--per-example", file, "--token-budget", 64]
        document = run_json("evaluate", trained_run["folder"], *arguments)
        lines, source_rows = rows(file), rows(tiny_pairs)
        assert [line["id"] for line in lines] == [row["id"] for row in source_rows]
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        models = {
            "log_prob": AutoModelForCausalLM.from_pretrained(trained_run["folder"]),
            "reference_log_prob": AutoModelForCausalLM.from_pretrained(tiny_model),
        }
        for line, row in list(zip(lines, source_rows, strict=True))[:6]:
            prompt = tokenizer(row["prompt"])["input_ids"]
            assert line["prompt_tokens"] == len(prompt)
            for candidate, text in zip(line["candidates"], (row["chosen"], row["rejected"]), strict=True):
                ids = torch.tensor([[*tokenizer(row["prompt"] + text)["input_ids"], tokenizer.eos_token_id]])
                assert candidate.keys() == {"log_prob", "tokens", "reference_log_prob"}
                assert candidate["tokens"] == ids.shape[1] - len(prompt)
                for name, model in models.items():
                    with torch.no_grad():
                        table = model(ids).logits.log_softmax(-1)[0]
                    expected = sum(float(table[i - 1, ids[0, i]]) for i in range(len(prompt), ids.shape[1]))
                    assert candidate[name] == pytest.approx(expected, abs=1e-4)
        margins = [
            (c["log_prob"] - c["reference_log_prob"]) - (r["log_prob"] - r["reference_log_prob"])
            for c, r in (line["candidates"] for line in lines)
        ]
        assert document["margin"]["value"] == pytest.approx(sum(margins) / 48, abs=1e-6)
        assert document["accuracy"]["value"] == pytest.approx(sum(m > 0 for m in margins) / 48)

    def test_dropped_rows_are_reported(self, run_verb, tiny_model, tmp_path):
        file = tmp_path / "pairs.jsonl"
        pairs = [("the", " cat", " dog"), ("a", " cat", ""), ("by", " tree", " tree")]
        lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), pair, strict=True))) for pair in pairs]
        file.write_text("\n".join(lines))
        out, err = run_verb("evaluate", tiny_model, "--data", file, "--empty", "drop", "--identical", "drop", "--json")
        assert json.loads(out)["groups"] == 1
        assert "empty candidate dropped: 1 of 3 groups" in err
        assert "identical candidates dropped: 1 of 3 groups" in err


class TestGenerate:
    def test_seed_decides_the_responses(self, run_json, tiny_model, tiny_pairs):
        arguments = ["generate", tiny_model, tiny_pairs, "--limit", 3, "--max-new-tokens", 8, "--samples", 2]
        document, repeated = run_json(*arguments, "--seed", 5), run_json(*arguments, "--seed", 5)
        other = run_json(*arguments, "--seed", 6)
        assert document == repeated
        assert document != other
        assert [answer["prompt"] for answer in document["answers"]] == [row["prompt"] for row in rows(tiny_pairs)[:3]]
        assert all(len(answer["responses"]) == 2 for answer in document["answers"])

    def test_from_a_text(self, run_json, tiny_model):
        arguments = ["generate", tiny_model, "the old cat", "--max-new-tokens", 5, "--temperature", 0]
        document = run_json(*arguments)
        assert document == run_json(*arguments, "--seed", 1)
        [answer] = document["answers"]
        assert answer["prompt"] == "the old cat"
        assert 1 <= len(answer["responses"][0].split()) <= 5

    def test_people_get_a_table(self, run_verb, tiny_model):
        out, _ = run_verb("generate", tiny_model, "the old cat", "--max-new-tokens", 3)
        assert "the old cat" in out
        assert "responses" in out


class TestData:
    def test_show_the_first(self, run_verb, tiny_pairs):
        out, _ = run_verb("data", "show", tiny_pairs, "--first", 2)
        assert "row-0" in out
        assert "row-1" in out
        assert "row-2" not in out
        assert out.count("chosen") >= 2

    def test_show_by_id_keeps_the_order_of_arguments(self, run_verb, tiny_pairs):
        out, _ = run_verb("data", "show", tiny_pairs, "row-7", "row-4")
        assert 0 < out.index("group row-7") < out.index("group row-4")
        assert "row-0" not in out

    def test_show_tokens(self, run_verb, tiny_pairs, tiny_model):
        out, _ = run_verb("data", "show", tiny_pairs, "row-0", "--tokenizer", tiny_model)
        row = rows(tiny_pairs)[0]
        assert f"prompt, {len(row['prompt'].split()) + 1} tokens" in out
        assert f"chosen, {len(row['chosen'].split()) + 1} tokens" in out
        assert "║" in out

    def test_split_by_prompt(self, run_json, tiny_pairs, tmp_path):
        train_file, out = tmp_path / "train.jsonl", tmp_path / "held-out.jsonl"
        options = ["--held-out", 0.25, "--seed", 1, "--train-output", train_file, "--held-out-output", out]
        assert run_json("data", "split", tiny_pairs, *options) == {"train": 36, "held_out": 12}
        prompts = [{row["prompt"] for row in rows(file)} for file in (train_file, out)]
        assert len(prompts[0]) == 18
        assert len(prompts[1]) == 6
        assert not prompts[0] & prompts[1]
        assert {row["id"] for file in (train_file, out) for row in rows(file)} == {
            row["id"] for row in rows(tiny_pairs)
        }

    def test_convert_and_back(self, run_json, run_verb, tiny_pairs, tmp_path):
        from penchant.data.reading import read_groups

        converted, second = tmp_path / "one.jsonl", tmp_path / "two.jsonl.gz"
        document = run_json("data", "convert", tiny_pairs, converted)
        assert (document["groups"], document["format"]) == (48, "pairs")
        out, _ = run_verb("data", "convert", converted, second)
        assert f"{second.name}: 48 groups" in out.replace("\n", "")
        assert gzip.decompress(second.read_bytes()) == converted.read_bytes()
        assert read_groups(second).groups == read_groups(tiny_pairs).groups

    def test_check_a_file_without_errors(self, run_verb, run_json, tiny_pairs):
        out, _ = run_verb("data", "check", tiny_pairs)
        assert "48 groups, format pairs" in out
        document = run_json("data", "check", tiny_pairs)
        counts = document["counts"]
        assert (counts["groups"], counts["prompts"], counts["pairs"]) == (48, 24, 48)
        assert [finding for finding in document["findings"] if finding["severity"] == "error"] == []

    def test_check_counts_tokens_and_finds_what_is_wrong(self, run_json, run_verb, tiny_pairs, tiny_model, tmp_path):
        file = tmp_path / "bad.jsonl"
        edited_rows = [{**row, "rejected": ""} if row["id"] == "row-5" else row for row in rows(tiny_pairs)]
        file.write_text("".join(json.dumps(row) + "\n" for row in edited_rows))

        def errors(*options: object) -> list[dict[str, Any]]:
            findings = run_json("data", "check", file, *options)["findings"]
            return [finding for finding in findings if finding["severity"] == "error"]

        [empty] = errors()
        assert empty["count"] == 1
        assert "row-5" in json.dumps(empty)
        leaks = errors("--held-out", tiny_pairs)
        assert len(leaks) == 2
        assert {finding["count"] for finding in leaks} == {1, 24}
        report = run_json("data", "check", file, "--tokenizer", tiny_model, "--max-length", 10)
        assert "tokens" not in json.dumps(run_json("data", "check", file)["lengths"])
        assert "tokens" in json.dumps(report["lengths"])
        assert "longer than the maximum length" in json.dumps(report["findings"])
        out, _ = run_verb("data", "check", file, "--tokenizer", tiny_model)
        assert "row-5" in out


def test_the_command_line_starts_without_the_heavy_libraries():
    heavy = "torch transformers datasets peft matplotlib pandas pyarrow"
    code = f"import sys, penchant.cli.main; print(*(set('{heavy}'.split()) & sys.modules.keys()))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout.split() == []


def test_help_names_every_verb(run_verb):
    out, _ = run_verb("--help")
    for verb in ("demo", "train", "evaluate", "generate", "data"):
        assert verb in out
    out, _ = run_verb("data", "--help")
    for verb in ("check", "show", "split", "convert"):
        assert verb in out
