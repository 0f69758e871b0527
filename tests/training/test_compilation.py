"""Whose layers a run compiles, and with what: decided once the model is loaded. The CPU plays the card."""

from __future__ import annotations

import json

import pytest
import torch

from penchant.config.run import load_config
from penchant.engine.scorer_choice import sample_groups
from penchant.training import model, run

CARD, CPU = torch.device("cuda"), torch.device("cpu")
NOTICE = "layers are not compiled: as this test asks"


@pytest.fixture
def compilations(monkeypatch):
    """Runs decide as if on `device["type"]`; returns it, and each compilation's arguments, then each run's scorer."""
    device, calls, adapt, load = {"type": CPU}, [], model.adapt, model.load_trained

    def load_trained(config, tokenizer, groups, world):
        def adapt_and_decide(*arguments):
            adapt(*arguments)
            object.__setattr__(world, "device", device["type"])

        def record(scorer, sample, dtype, weights, rounding):
            calls.append((scorer, {module.training for module in scorer.modules()}, sample, dtype, weights, rounding))
            return NOTICE

        monkeypatch.setattr(model, "adapt", adapt_and_decide)
        monkeypatch.setattr(model, "working_weights", lambda *arguments: arguments)
        monkeypatch.setattr(model, "compile_scorer", record)
        trained = load(config, tokenizer, groups, world)
        object.__setattr__(world, "device", CPU)
        calls.append((trained.scorer, groups))
        return trained

    monkeypatch.setattr(run, "load_trained", load_trained)
    return device, calls


@pytest.mark.parametrize("objective", ["dpo", "bradley_terry"])
def test_a_card_compiles_the_scorer_that_trains(write_config, compilations, notices, objective):
    device, calls = compilations
    device["type"] = CARD
    file = write_config(objective={"name": objective}, training={"max_steps": 1, "dtype": "bfloat16"})
    folder = run.train(load_config(file))
    (scorer, modes, sample, dtype, weights, rounding), (trained_scorer, groups) = calls
    assert scorer is trained_scorer
    assert modes == {True}
    assert [group.group.id for group in sample] == [group.group.id for group in sample_groups(groups)]
    assert dtype == "bfloat16"
    assert rounding > 0
    assert weights == (scorer, CARD, "bfloat16", 1)
    assert NOTICE in json.loads((folder / "run.json").read_text())["notes"]
    assert NOTICE in notices.messages


def test_a_cpu_compiles_nothing(write_config, compilations):
    _, calls = compilations
    run.train(load_config(write_config(training={"max_steps": 1})))
    assert len(calls) == 1
