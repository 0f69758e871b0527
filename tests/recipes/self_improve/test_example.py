"""The committed example and the script that makes its learner, with few steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from penchant.config.run import load_section
from penchant.recipes import demo_world as world
from penchant.recipes.self_improve.config import SelfImproveConfig, TrafficConfig
from penchant.recipes.self_improve.loop import improve

EXAMPLES = Path(__file__).resolve().parents[3] / "examples" / "recipes"


def script():
    spec = importlib.util.spec_from_file_location("reviews", EXAMPLES / "reviews.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_conditions():
    conditions = script().conditions(
        "Review of the cozy cafe on the corner:", " The cafe was perfect. The soup was good."
    )
    assert conditions == {
        "it is favourable": True,
        "it is two or three whole sentences": True,
        "it says what it is about": True,
    }
    assert list(script().conditions("Review of the cozy cafe:", "It was terrible").values()) == [False, False, False]


@pytest.mark.slow
def test_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = script()
    for name in ("TEXTS", "DEMONSTRATIONS", "PROMPTS"):
        monkeypatch.setattr(module, name, 40)
    for name in ("PRETRAINING", "TUNING"):
        monkeypatch.setattr(module, name, 2)
    module.make_files(Path("files"))
    prompts = [json.loads(line)["prompt"] for line in Path("files/prompts.jsonl").read_text().splitlines()]
    assert len(set(prompts)) == 40
    demonstrated = {json.loads(line)["prompt"] for line in Path("files/demonstrations.jsonl").read_text().splitlines()}
    assert demonstrated.isdisjoint(prompts)
    assert demonstrated <= set(world.split_prompts(0, 0)[0])
    file = EXAMPLES / "self_improve.yaml"
    function = f"verifier.function={EXAMPLES / 'reviews.py'}:conditions"
    config = load_section(SelfImproveConfig, file, [function, "rounds=1", "prompts_per_round=4", "attempts=2"])
    rounds = improve(config)
    assert [round_["round"] for round_ in rounds] == [0, 1]
    assert len(rounds[0]["test"]["satisfied"]) == 10


def test_server_example_is_a_valid_configuration():
    """It differs from the recipe's in what only a server has."""
    served, recipe = (
        yaml.safe_load((EXAMPLES / name).read_text()) for name in ("self_improve_serve.yaml", "self_improve.yaml")
    )
    config = load_section(TrafficConfig, EXAMPLES / "self_improve_serve.yaml")
    assert config.checks == 100
    common = ("model", "verifier", "attempts", "sampling", "measured", "update")
    assert {key: served[key] for key in common} == {key: recipe[key] for key in common}
