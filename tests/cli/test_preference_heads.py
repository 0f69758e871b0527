"""A folder with a preference head under every verb: carried on, or what is lost is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from penchant.cli.main import run
from penchant.config.run import load_config
from penchant.models.preference_head import load_head
from penchant.training import loop
from penchant.training.loop import Interrupted
from penchant.training.run import train

KINDS = ("full", "frozen", "lora")


@pytest.fixture(scope="module")
def configs(tiny_model, tiny_pairs, tmp_path_factory) -> dict[str, Path]:
    """Configurations of a head: beside a model that is trained, a frozen one, and adapters."""
    folder = tmp_path_factory.mktemp("heads")
    files = {}
    for name in KINDS:
        values = {
            "model": str(tiny_model),
            "data": {"train": str(tiny_pairs), "held_out": 0.25},
            "objective": {"name": "preference_head"},
            "head": {"pooling": "tanh", "freeze_backbone": name == "frozen"},
            "lora": {"rank": 4} if name == "lora" else None,
            "training": {"max_steps": 4, "batch_size": 8, "token_budget": 128, "learning_rate": 1e-2},
            "checkpoints": {"every": 1},
            "logging": {"every": 1},
            "output": str(folder / name),
        }
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(values))
    return files


@pytest.fixture(scope="module")
def folders(configs) -> dict[str, Path]:
    return {name: train(load_config(file)) for name, file in configs.items()}


def document_of(capsys, *command: object) -> dict:
    assert run([str(part) for part in command]) == 0
    return json.loads(capsys.readouterr().out)


def test_merge_carries_the_head(folders, tiny_pairs, tmp_path, capsys):
    """Ranks by the head, and the best of samples, are those of the run."""
    merged = tmp_path / "merged"
    assert run(["merge", str(folders["lora"]), str(merged)]) == 0
    assert "merged, with its preference head preference_head" in capsys.readouterr().out
    ranking = ["--data", tiny_pairs, "--by", "head", "--json"]
    of_run, of_merged = (document_of(capsys, "rank", model, *ranking) for model in (folders["lora"], merged))
    assert of_run["groups"] == of_merged["groups"]
    assert of_run["accuracy"] == of_merged["accuracy"]
    best = ["the old cat", "--best-of", 3, "--max-new-tokens", 5, "--seed", 1, "--json"]
    of_run, of_merged = (document_of(capsys, "generate", model, *best) for model in (folders["lora"], merged))
    assert of_run == of_merged
    assert len(set(of_run["answers"][0]["rewards_of_all"])) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_evaluate_says_how_the_head_is_measured(folders, tiny_pairs, capsys, kind):
    assert run(["evaluate", str(folders[kind]), "--data", str(tiny_pairs), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "log_prob_accuracy" in json.loads(out)
    assert (
        f"the language model is measured here, and the head by: penchant rank {folders[kind]} --data FILE --by head"
        in err
    )


def test_frozen_backbone_keeps_its_log_probs(folders, tiny_model, tiny_pairs, capsys):
    margins = [
        document_of(capsys, "evaluate", model, "--data", tiny_pairs, "--json")["log_prob_margin"]
        for model in (folders["frozen"], tiny_model)
    ]
    assert margins[0] == margins[1]


def test_residual_says_that_the_head_is_left_out(folders, tiny_model, tmp_path, capsys):
    command = [
        "residual",
        folders["full"],
        "--base",
        tiny_model,
        "--instruct",
        tiny_model,
        "--output",
        tmp_path / "new",
    ]
    assert run([str(part) for part in command]) == 0
    assert "the preference head is left out (preference_head)" in capsys.readouterr().out
    assert not list((tmp_path / "new").glob("preference_head*"))


@pytest.mark.parametrize(
    ("objective", "notice"), [("sft", "is not part of this run"), ("preference_head", "a fresh one is")]
)
def test_a_further_run_says_that_the_head_is_not_carried_on(folders, configs, tmp_path, capsys, objective, notice):
    settings = [f"model={folders['full']}", f"output={tmp_path / 'next'}", f"objective.name={objective}"]
    assert run(["train", str(configs["full"]), *settings, "training.max_steps=1"]) == 0
    assert notice in capsys.readouterr().out
    assert (tmp_path / "next" / "preference_head.safetensors").exists() == (objective == "preference_head")


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_training_gives_the_same_head(folders, configs, tmp_path, monkeypatch, kind):
    """Stopped after two of four steps."""
    config = load_config(configs[kind], [f"output={tmp_path / 'again'}"])
    save, marks = loop.Checkpoints.save, []

    def stop(self, step, *arguments):
        path = save(self, step, *arguments)
        marks.append(step)
        if step == 2:
            raise Interrupted(str(tmp_path))
        return path

    monkeypatch.setattr(loop.Checkpoints, "save", stop)
    with pytest.raises(Interrupted):
        train(config)
    monkeypatch.undo()
    train(config, resume=True)
    uninterrupted, resumed = (load_head(folder).state_dict() for folder in (folders[kind], tmp_path / "again"))
    assert all(uninterrupted[name].equal(resumed[name]) for name in uninterrupted)


def test_export_says_that_the_head_is_left_out(tmp_path, tiny_pairs, capsys):
    import torch

    from penchant.models.preference_head import PreferenceHead, save_head
    from penchant.recipes.small_llama import Sizes, build_small_llama

    build_small_llama(tmp_path / "model", ["the old cat sees a big dog"], Sizes(300, 40, 2, 2, 64), seed=0)
    torch.manual_seed(0)
    save_head(tmp_path / "model", PreferenceHead(40, "identity"))
    assert run(["export", str(tmp_path / "model"), str(tmp_path / "model.gguf")]) == 0
    assert "the preference head is left out (preference_head)" in capsys.readouterr().out
