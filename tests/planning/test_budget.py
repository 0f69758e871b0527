"""The largest token budget that fits: by closed forms of the peak, and for shapes of real models without data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, PretrainedConfig

from penchant.config.run import RunConfig, parse_config
from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.planning import plan as planning
from penchant.planning.budget import CARD_SHARE, CLOSE, MAX_PLANS, STEP, largest_budget
from penchant.planning.memory import Memory
from penchant.planning.model import ModelSpec
from penchant.planning.plan import Planner
from penchant.training.automatic import with_training
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
}  # fmt: skip


def pairs(count: int) -> list[TokenizedGroup]:
    """Pairs of long responses after a long prompt: few, so that they are counted quickly."""
    ids = np.ones(3000, np.int64)
    return [TokenizedGroup(ids, (ids, ids), PAIR) for _ in range(count)]


def planner(shape: str, card_gb: int, **changes: Any) -> Planner:
    """A plan of 6 long pairs a step. The CPU plays the card: torch counts a card's tensors on builds for it only."""
    kind, values = SHAPES[shape]
    settings = {"model": "-", "data": "-", "output": "-", "objective": {"name": "dpo"}}
    training = {"dtype": "bfloat16", "batch_size": 6, "gradient_checkpointing": True}
    config = parse_config({**settings, **changes, "training": training}, "here")
    spec = ModelSpec(config, kind(**values, max_position_embeddings=16_384), tokenizer=None)
    return Planner(config, Inputs(pairs(6), [], [], ""), 16_384, spec, torch.device("cpu"), card_gb << 30, 0)


@pytest.fixture
def counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory by configuration, for all cards together: it does not depend on the card."""
    counts: dict[str, Memory] = {}
    memory = Planner.memory

    def cached_memory(self: Planner, config: RunConfig, roughly: bool = False) -> Memory:
        key = config.model_dump_json()
        if key not in counts:
            counts[key] = memory(self, config, roughly)
        return counts[key]

    monkeypatch.setattr(Planner, "memory", cached_memory)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "changes", "too_small"),
    # Weights, gradients and moments of 8 billion parameters take 128 GB. benchmarks/budget_table.py has smaller models,
    # which take longer to count: more budgets fit.
    [("8B", {"lora": {"rank": 16}}, (24,)), ("8B", {}, (24, 80, 139))],
    ids=["8B LoRA", "8B"],
)
def test_the_planned_peak_fits_the_card(counted_once, shape, changes, too_small):
    budgets = []
    for card_gb in CARDS_GB:
        plan = planner(shape, card_gb, **changes)
        budget = plan.fitting_budget()
        peak = plan.memory(with_training(plan.config, token_budget=budget)).peak
        budgets.append(budget)
        assert 9000 <= budget <= 6 * 9000
        assert (plan.shortage is not None) is (card_gb in too_small)
        if plan.shortage is None:
            assert peak <= CARD_SHARE * (card_gb << 30)
        else:
            assert budget == 9000
            assert peak > CARD_SHARE * (card_gb << 30)
            assert "auto is 9,000, the longest group, and even that is planned to take" in plan.shortage
    assert budgets == sorted(budgets)


class TestPlan:
    def test_auto_is_resolved_and_shown(self, write_config, monkeypatch):
        from penchant.config.run import load_config

        monkeypatch.setattr(planning, "SECONDS", 0.02)
        config = load_config(write_config(training={"dtype": "auto", "token_budget": "auto"}))
        plan = planning.plan(config)
        assert (plan.dtype, plan.token_budget) == ("float32", 8192)
        assert (plan.to_json()["dtype"], plan.to_json()["token_budget"]) == ("float32", 8192)
