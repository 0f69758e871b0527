"""Every verb on a reward model: measured by its rewards, merged as what it is, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
import yaml
from sklearn.metrics import roc_auc_score

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.data.reading import read_groups
from penchant.models.loading import load_tokenizer
from penchant.training.run import train


@pytest.fixture(scope="module")
def settings(tiny_model, tiny_pairs):
    return {
        "model": str(tiny_model),
        "data": {"train": str(tiny_pairs)},
        "objective": {"name": "bradley_terry"},
        "training": {"max_steps": 4, "batch_size": 8, "token_budget": 128, "learning_rate": 1e-2},
    }


@pytest.fixture(scope="module")
def folders(settings, tmp_path_factory) -> dict[str, Path]:
    """A reward model's run, one of an adapter, and that one merged."""
    folder = tmp_path_factory.mktemp("runs")
    for name, lora in (("full", None), ("lora", {"rank": 4})):
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**settings, "output": str(folder / name), "lora": lora}))
        train(load_config(file))
    assert run(["merge", str(folder / "lora"), str(folder / "merged")]) == 0
    return {name: folder / name for name in ("full", "lora", "merged")}


KINDS = ("full", "lora", "merged")


def rewards_of(folder: Path, data: Path) -> tuple[list[list[float]], list[int]]:
    """By transformers alone (PEFT's forward for the adapter), each row by itself; and each response's tokens."""
    if (folder / "adapter_config.json").exists():
        from peft import PeftModel

        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = hf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        model = PeftModel.from_pretrained(model, folder)
    else:
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer, rewards = load_tokenizer(str(folder)), []
    for group in read_groups(data).groups:
        row = []
        for text in group.candidates:
            ids = [*tokenizer(group.prompt + text).input_ids, tokenizer.eos_token_id]
            with torch.no_grad():
                row.append(float(model.eval()(torch.tensor([ids])).logits[0, 0]))
        rewards.append(row)
    return rewards


@pytest.mark.slow_but("lora")
@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_measures_rewards(folders, tiny_pairs, tmp_path, capsys, kind):
    out = tmp_path / "rows.jsonl"
    command = ["evaluate", folders[kind], "--data", tiny_pairs, "--json", "--per-example", out]
    assert run([str(part) for part in command]) == 0
    document = json.loads(capsys.readouterr().out)
    rewards = rewards_of(folders[kind], tiny_pairs)
    margins = [better - worse for better, worse in rewards]
    assert (document["groups"], document["pairs"]) == (48, 48)
    assert document["accuracy"]["value"] == pytest.approx(sum(margin > 0 for margin in margins) / 48)
    assert document["margin"]["value"] == pytest.approx(sum(margins) / 48, abs=1e-5)
    auc = roc_auc_score([1, 0] * 48, [reward for row in rewards for reward in row])
    assert document["auc"]["value"] == pytest.approx(auc, abs=1e-3)
    assert all(document[name].keys() == {"value", "low", "high", "n"} for name in ("accuracy", "auc", "margin", "ties"))
    assert "reward of the model's head" in document["definitions"]["accuracy"]
    assert not any("log_prob" in name for name in document)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"row-{i}" for i in range(48)]
    for row, expected in zip(rows, rewards, strict=True):
        assert [candidate["reward"] for candidate in row["candidates"]] == pytest.approx(expected, abs=1e-5)


def test_rank_by_reward_agrees(folders, tiny_pairs, capsys):
    assert run(["rank", str(folders["lora"]), "--data", str(tiny_pairs), "--by", "reward", "--json"]) == 0
    scores = [row["scores"] for row in json.loads(capsys.readouterr().out)["groups"]]
    for row, expected in zip(scores, rewards_of(folders["lora"], tiny_pairs), strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "prefix"),
    [
        (["--reference", "x"], "--reference:"),
        (["--beta", "0.2"], "--beta:"),
        (["--reference", "x", "--beta", "1"], "and"),
        (["--learn", "all"], "--learn all:"),
    ],
)
def test_log_prob_flags_are_refused_for_a_reward_model(folders, tiny_pairs, capsys, flags, prefix):
    assert run(["evaluate", str(folders["full"]), "--data", str(tiny_pairs), *flags]) == 2
    message = capsys.readouterr().err
    assert prefix in message
    assert "this is a reward model" in message


def test_model_with_several_outputs_needs_a_label(tmp_path, tiny_model, tiny_pairs, capsys):
    config = hf.AutoConfig.from_pretrained(tiny_model, num_labels=3)
    hf.AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "three")
    load_tokenizer(str(tiny_model)).save_pretrained(tmp_path / "three")
    assert run(["evaluate", str(tmp_path / "three"), "--data", str(tiny_pairs)]) == 2
    message = capsys.readouterr().err
    assert "has 3 outputs" in message
    by_label = ["rank", str(tmp_path / "three"), "--data", str(tiny_pairs), "--by", "reward", "--json"]
    assert "--data FILE --by reward --label 0" in message
    assert run(by_label) == 2
    assert "--label 1" in capsys.readouterr().err
    assert run([*by_label, "--label", "2"]) == 0
    assert len(json.loads(capsys.readouterr().out)["groups"]) == 48


VERBS = {
    "generate": ["generate", "{it}", "the old cat"],
    "generate --best-of": ["generate", "{it}", "the old cat", "--best-of", "2"],
    "export": ["export", "{it}", "{new}.gguf"],
    "rank --by log_prob": ["rank", "{it}", "--data", "{data}", "--by", "log_prob"],
    "rank --by head": ["rank", "{it}", "--data", "{data}", "--by", "head"],
    "tasks --head": ["tasks", "{it}", "--task", "piqa={piqa}", "--head"],
    "rank --by mean_log_prob": ["rank", "{it}", "--data", "{data}"],
    "tasks": ["tasks", "{it}", "--task", "piqa={piqa}"],
    "tool-calls": ["tool-calls", "{it}", "--data", "{calls}"],
    "serve": ["serve", "{it}", "--port", "0"],
    "serve several": ["serve", "a={model}", "b={it}", "--port", "0"],
    "residual": ["residual", "{it}", "--base", "{model}", "--instruct", "{model}", "--output", "{new}"],
    "residual's base": ["residual", "{model}", "--base", "{it}", "--instruct", "{model}", "--output", "{new}"],
    "residual's instruct": ["residual", "{model}", "--base", "{model}", "--instruct", "{it}", "--output", "{new}"],
    "evaluate's reference": ["evaluate", "{model}", "--data", "{data}", "--reference", "{it}"],
    "train": ["train", "{run}", "model={it}", "output={new}", "objective.name=dpo"],
    "train a head": ["train", "{run}", "model={it}", "output={new}", "objective.name=preference_head"],
    "train's reference": ["train", "{run}", "reference={it}", "output={new}", "objective.name=dpo"],
    "train's references": [
        "train", "{run}", "references=[{model}, {it}]", "output={new}", "objective.name=multi_reference",
    ],
    "plan": ["plan", "{run}", "model={it}", "objective.name=dpo"],
    "plan's reference": ["plan", "{run}", "reference={it}", "objective.name=dpo"],
    "compare": ["compare", "{bench}", "base.model={it}", "output={new}"],
    "recipe recommend": ["recipe", "recommend", "{recipe}", "model={it}", "output={new}"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
def test_reward_model_is_refused_as_a_language_model(
    verb, kind, folders, settings, tiny_model, tiny_pairs, tmp_path, capsys
):
    file, bench, piqa = tmp_path / "run.yaml", tmp_path / "bench.yaml", tmp_path / "piqa.jsonl"
    file.write_text(yaml.safe_dump({**settings, "output": "unused"}))
    base = {**{key: value for key, value in settings.items() if key != "objective"}, "data": {"train": str(tiny_pairs)}}
    base["data"]["held_out"] = 0.25
    methods = [{"label": "dpo", "objective": {"name": "dpo"}}]
    bench.write_text(yaml.safe_dump({"base": base, "methods": methods, "baseline": "start", "output": "unused"}))
    piqa.write_text(json.dumps({"goal": "the cat", "sol1": "runs", "sol2": "sees", "label": 0}) + "\n")
    calls = tmp_path / "calls"
    (calls / "possible_answer").mkdir(parents=True)
    function = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
    question = {"id": "simple_python_0", "question": [[{"role": "user", "content": "cat"}]], "function": [function]}
    (calls / "BFCL_v4_simple_python.json").write_text(json.dumps(question))
    answer = {"id": "simple_python_0", "ground_truth": [{"f": {}}]}
    (calls / "possible_answer" / "BFCL_v4_simple_python.json").write_text(json.dumps(answer))
    recipe = Path(__file__).parents[2] / "examples" / "recipes" / "recommend.yaml"
    names = {
        "recipe": recipe,
        "it": folders[kind], "new": tmp_path / "new", "data": tiny_pairs, "model": tiny_model, "run": file,
        "bench": bench, "piqa": piqa, "calls": calls,
    }  # fmt: skip
    assert run([part.format(**names) for part in VERBS[verb]]) == 2
    message = capsys.readouterr().err
    assert "this is a reward model, a" in message
    assert str(folders[kind]) in message
    assert not (tmp_path / "new").exists()


def test_language_model_is_refused_as_a_reward_model(tiny_model, tiny_pairs, tmp_path, capsys):
    for command in (
        ["rank", str(tiny_model), "--data", str(tiny_pairs), "--by", "reward"],
        ["score", str(tiny_pairs), "--model", str(tiny_model), "--output", str(tmp_path / "scored.jsonl")],
    ):
        assert run(command) == 2
        message = capsys.readouterr().err
        assert "this is a language model, a LlamaForCausalLM, which has no head" in message
        assert f"model={tiny_model} objective.name=bradley_terry" in message
