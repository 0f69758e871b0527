"""Loss and gradient of a batch do not depend on how it is cut, for separable and for coupled objectives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine import working_weights
from penchant.engine.distributed import World
from penchant.engine.kernels import layer_fusion
from penchant.engine.tree import TreeScorer, use_tree
from penchant.engine.working_weights import WorkingWeights
from penchant.errors import ConfigError
from penchant.objectives import DPO, Needs, Output, Sum
from penchant.training.backward import Batch, backward, objective_inputs

ALONE = World(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Spread:
    """A toy whose loss depends on the whole batch: the squared distance of each log-prob from the batch's mean."""

    name: ClassVar[str] = "spread"
    needs: ClassVar[Needs] = Needs(references=0, candidates=1, pairs=False)
    coupled: ClassVar[bool] = True

    def initial_state(self, seed):
        return {"calls": torch.zeros(())}

    def __call__(self, policy, reference, groups, state):
        masked = torch.where(groups.mask, policy, 0.0)
        mean = masked.sum() / groups.mask.sum()
        losses = torch.where(groups.mask, (policy - mean) ** 2, 0.0).sum(1) / 100
        metrics = {"mean": Sum(mean.detach(), torch.ones(()))}
        return Output(losses, groups.weights, metrics), {"calls": state["calls"] + 1}


@pytest.fixture
def scorer() -> TreeScorer:
    torch.manual_seed(0)
    return tree_scorer()


def tree_scorer() -> TreeScorer:
    config = LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    use_tree(model)
    return TreeScorer(model)


@pytest.fixture
def groups() -> list[TokenizedGroup]:
    draw = np.random.default_rng(0)
    return [
        TokenizedGroup(
            draw.integers(3, 31, 4),
            tuple(draw.integers(3, 31, draw.integers(1, 6)) for _ in range(k)),
            PreferenceGroup("x", ("y",) * k, preferred=0, id=f"group-{number}", weight=1 + number / 10),
        )
        for number, k in enumerate([2, 3, 2, 4, 2])
    ]


@dataclass(frozen=True)
class Counting(DPO):
    """DPO that counts the groups it was called with, and says that it needs no whole batch."""

    coupled: ClassVar[bool] = False

    def initial_state(self, seed):
        return {"groups": torch.zeros(())}

    def __call__(self, policy, reference, groups, state):
        output, _ = super().__call__(policy, reference, groups, state)
        return output, {"groups": state["groups"] + len(policy)}


@dataclass(frozen=True)
class CountingWhole(Counting):
    coupled: ClassVar[bool] = True


@pytest.mark.parametrize("budget", [1, 30, 10**9])
def test_a_state_moves_once_for_the_whole_batch(scorer, groups, budget):
    """A method that moves one is coupled; of one that is not the token budget would decide how often it moves."""
    _, state, _ = gradients(scorer, CountingWhole(), groups, budget)
    assert float(state["groups"]) == 5
    with pytest.raises(ConfigError, match="objective dpo changes its state, and its `coupled` is False"):
        gradients(scorer, Counting(), groups, budget)


def gradients(scorer, objective, groups, budget, dtype="float32", copies=torch.float32):
    references = [[[-3.0] * len(group.responses) for group in groups]] * objective.needs.references
    scorer.zero_grad()
    batch = Batch(groups, references, budget, dtype)
    weights = WorkingWeights(scorer, copies)
    result, state = backward(scorer, objective, objective.initial_state(0), batch, ALONE, weights)
    return result, state, torch.cat([p.grad.flatten() for p in scorer.parameters()])


@pytest.mark.parametrize("objective", [DPO(), DPO(average="pairs"), Spread()], ids=["groups", "pairs", "coupled"])
@pytest.mark.parametrize("budget", [1, 30])
def test_micro_batches_equal_the_whole_batch(scorer, groups, objective, budget):
    whole, state, expected = gradients(scorer, objective, groups, 10**9)
    parts, parts_state, actual = gradients(scorer, objective, groups, budget)
    assert (actual - expected).norm() / expected.norm() < 1e-5
    assert expected.norm() > 1e-3
    for name, pair in whole.sums.items():
        torch.testing.assert_close(parts.sums[name], pair, rtol=1e-5, atol=1e-6)
    assert {name: float(value) for name, value in parts_state.items()} == {
        name: float(value) for name, value in state.items()
    }
    if objective.coupled:
        assert float(state["calls"]) == 1


@pytest.mark.parametrize("objective", [DPO(), Spread()], ids=["separable", "coupled"])
@pytest.mark.parametrize("budget", [1, 30, 10**9])
def test_working_weights_of_micro_batches_add_up_in_float32(monkeypatch, groups, objective, budget):
    """The same bits as where every layer casts its weights, and float32 weights get the sum of all micro-batches."""
    monkeypatch.setattr(layer_fusion, "_fuse_modules", lambda model: None)  # As on a card.
    monkeypatch.setattr(working_weights, "STACKED", ())  # One product of several layers rounds otherwise.
    torch.manual_seed(0)
    scorer = tree_scorer()
    _, _, expected = gradients(scorer, objective, groups, budget, "bfloat16")
    _, _, actual = gradients(scorer, objective, groups, budget, "bfloat16", torch.bfloat16)
    assert torch.equal(actual, expected)


def test_both_passes_of_a_coupled_objective_drop_the_same(scorer, groups):
    """With dropout (of adapters) on, the gradient is that of the very log-probs the statistics were taken of."""
    dropout = torch.nn.Dropout(0.5)
    scorer.model.model.norm.register_forward_hook(lambda module, inputs, out: dropout(out))
    scorer.train()
    torch.manual_seed(7)
    _, _, actual = gradients(scorer, Spread(), groups, 1)
    scorer.zero_grad()
    rows = []
    for number, group in enumerate(groups):
        torch.manual_seed(7 + number)
        rows.append(torch.nn.functional.pad(scorer(pack([group])), (0, 4 - len(group.responses))))
    policy, reference, facts = objective_inputs(torch.cat(rows), groups, [])
    output, _ = Spread()(policy, reference, facts, {"calls": torch.zeros(())})
    output.loss.total.backward()
    expected = torch.cat([p.grad.flatten() for p in scorer.parameters()])
    assert (actual - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize("r", [0, 1, 2])
def test_objectives_get_every_reference_of_their_groups(groups, r):
    tables = [[[-10.0 * n - g] * len(group.responses) for g, group in enumerate(groups)] for n in range(r)]
    batch = Batch(groups, tables, 10**9, "float32").part([3, 0])
    _, reference, _ = objective_inputs(torch.zeros(2, 4), batch.groups, batch.references)
    assert reference.shape == (r, 2, 4)
    for n in range(r):
        assert reference[n].tolist() == [[-10.0 * n - 3] * 4, [-10.0 * n, -10.0 * n, 0.0, 0.0]]


def test_broken_groups_are_named(groups):
    policy = torch.zeros(5, 4)
    policy[3, 0] = float("nan")
    references = [[[0.0] * 4 for _ in groups]]
    output = DPO().evaluate(*objective_inputs(policy, groups, references), {})
    from penchant.training.backward import Result

    result = Result()
    result.add(output, groups, counts=True)
    assert result.non_finite_ids == ["group-3"]
