"""The largest token budget that fits: by closed forms of the peak, and for shapes of real models without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

from penchant.config.run import RunConfig, parse_config, with_training
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.planning import plan as planning
from penchant.planning.memory import Memory
from penchant.planning.model import ModelSpec
from penchant.planning.plan import Planner
from penchant.planning.work import CARD_SHARE, CLOSE, MAX_PLANS, STEP, largest_budget
from penchant.training.inputs import Inputs

CARDS_GB = (24, 80, 139)


class TestSearch:
    def test_a_step_that_fits_whole_is_not_cut(self):
        asked_budgets: list[int] = []

        def peak(budget: int) -> int:
            asked_budgets.append(budget)
            return budget

        assert largest_budget(peak, 700, 32_768, 32_768) == 32_768
        assert asked_budgets == [8192, 32_768]

    @pytest.mark.parametrize(("whole", "smallest"), [(300, 100), (300, 400)])
    def test_a_short_step_takes_one_plan(self, whole, smallest):
        asked_budgets: list[int] = []

        def peak(budget: int) -> int:
            asked_budgets.append(budget)
            return budget

        assert largest_budget(peak, smallest, whole, 10**9) == max(whole, smallest)
        assert asked_budgets == [max(whole, smallest)]

    @pytest.mark.parametrize("room", [3000, 9000, 20_000, 77_777, 300_000])
    @pytest.mark.parametrize("floor", [0, 2500])
    def test_peaks_that_grow_in_a_line_above_a_floor(self, floor, room):
        """The weights' step is the floor: below it activations change nothing."""
        asked_budgets: list[int] = []

        def peak(budget: int) -> int:
            asked_budgets.append(budget)
            return max(floor, 1000 + budget)

        budget = largest_budget(peak, 512, 1 << 20, room)
        assert len(asked_budgets) == len(set(asked_budgets)) <= MAX_PLANS
        assert peak(budget) <= room
        assert budget + STEP > room - 1000 or peak(budget) >= CLOSE * room
        assert budget % STEP == 0

    def test_not_even_the_longest_group_fits(self):
        assert largest_budget(lambda budget: budget + 10, 600, 5000, 609) is None
        assert largest_budget(lambda budget: budget + 10, 600, 5000, 610) == 600


PAIR = PreferenceGroup("", ("a", "b"), scores=(1.0, 0.0), id="0")
SHAPES: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "8B": (LlamaConfig, {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
                         "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 128_256,
                         "tie_word_embeddings": False}),
    "5M": (LlamaConfig, {"hidden_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
                         "num_key_value_heads": 2, "intermediate_size": 1024, "vocab_size": 8000,
                         "tie_word_embeddings": False}),
}  # fmt: skip


def pairs(count: int, length: int) -> list[TokenizedGroup]:
    """Pairs of responses after a prompt, all of one length: few, so that they are counted quickly."""
    ids = np.ones(length, np.int64)
    return [TokenizedGroup(ids, (ids, ids), PAIR) for _ in range(count)]


def planner(shape: str, card: int, step: list[TokenizedGroup], **changes: Any) -> Planner:
    """A plan of steps of these pairs on a card of so many bytes.

    The CPU plays the card: torch counts a card's tensors on builds for it only.
    """
    kind, values = SHAPES[shape]
    settings = {"model": "-", "data": "-", "output": "-", "objective": {"name": "dpo"}}
    training = {"dtype": "bfloat16", "batch_size": len(step), "gradient_checkpointing": True}
    config = parse_config({**settings, **changes, "training": training}, "here")
    spec = ModelSpec(config, kind(**values, max_position_embeddings=16_384), tokenizer=None)
    return Planner(config, Inputs(step, [], [], ""), 16_384, spec, torch.device("cpu"), card, 0)


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory by configuration, for all cards together: it does not depend on the card."""
    counts: dict[tuple[str, bool], Memory] = {}
    memory = Planner.memory

    def cached_memory(self: Planner, config: RunConfig, approximate: bool = False) -> Memory:
        key = (config.model_dump_json(), approximate)
        if key not in counts:
            counts[key] = memory(self, config, approximate)
        return counts[key]

    monkeypatch.setattr(Planner, "memory", cached_memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "changes", "planned"),
    # A group of three times 3000 tokens does not fit beside the weights of 16 GB; six fit wherever one does. Weights,
    # gradients and moments of 8 billion parameters take 128 GB. benchmarks/budget_table.py has smaller models, which
    # take longer to count: more budgets fit.
    [("8B", {"lora": {"rank": 16}}, (None, 54_000, 54_000)), ("8B", {}, (None, None, None))],
    ids=["8B LoRA", "8B"],
)
def test_the_planned_peak_fits_the_card(counted_once, shape, changes, planned):
    for card_gb, expected in zip(CARDS_GB, planned, strict=True):
        plan = planner(shape, card_gb << 30, pairs(6, 3000), **changes)
        budget = plan.fitting_budget()
        peak = plan.memory(with_training(plan.config, token_budget=budget)).peak
        if expected is None:
            assert budget == 9000
            assert peak > CARD_SHARE * (card_gb << 30)
            assert "auto is 9,000, the longest group, and even that is planned to take" in plan.budget_warning
        else:
            assert budget == pytest.approx(expected, abs=STEP)
            assert peak <= CARD_SHARE * (card_gb << 30)
            assert plan.budget_warning is None


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_cut(counted_once):
    """All weights of a small model on a small card: between a group of 1,200 tokens and a step of 14,400."""
    plan = planner("5M", 485 << 20, pairs(12, 400))
    budget = plan.fitting_budget()
    assert budget == pytest.approx(9216, abs=STEP)
    assert plan.memory(with_training(plan.config, token_budget=budget)).peak <= CARD_SHARE * (485 << 20)
    assert plan.memory(with_training(plan.config, token_budget=14_400)).peak > CARD_SHARE * (485 << 20)
    assert plan.budget_warning is None


class TestPlan:
    @pytest.mark.slow
    def test_auto_is_resolved_and_shown(self, write_config, monkeypatch):
        from penchant.config.run import load_config

        monkeypatch.setattr(planning, "SECONDS", 0.02)
        config = load_config(write_config(training={"dtype": "auto", "token_budget": "auto"}))
        plan = planning.plan(config)
        assert (plan.dtype, plan.token_budget) == ("float32", 8192)
        assert (plan.to_json()["dtype"], plan.to_json()["token_budget"]) == ("float32", 8192)
