"""The choice of a model's scorer, and log-probs that depend on the groups alone."""

from __future__ import annotations

import pytest
import torch

from penchant.data.trees import pack
from penchant.engine import scoring
from penchant.engine.distributed import World
from penchant.engine.padded import PaddedScorer, pad_left
from penchant.engine.scorer_choice import choose_scorer
from penchant.engine.scoring import precision, score_groups
from penchant.engine.tree import TreeScorer
from penchant.engine.tree_plan import Tiling
from penchant.storage.caches import LogProbCache

ALONE = World(0, 1, torch.device("cpu"))
SHAPES = [(9, (4, 7)), (1, (3,)), (30, (1, 2, 9, 5, 2)), (12, (6, 6)), (5, (8, 1, 3))]


def one_by_one(model, group):
    """Log-prob of every candidate from its own sequence, unpadded."""
    sums = []
    for response in group.responses:
        ids = torch.tensor([[*group.prompt, *response]])
        with torch.no_grad():
            table = model(ids).logits[0].log_softmax(-1)
        sums.append(sum(float(table[i - 1, ids[0, i]]) for i in range(len(group.prompt), ids.shape[1])))
    return sums


def test_proven_families_get_the_tree_without_a_notice(family, build, make_groups):
    choice = choose_scorer(build(family), make_groups(SHAPES[:2], 0))
    assert isinstance(choice.scorer, TreeScorer)
    assert choice.notice is None


def test_experts_get_the_tree_without_a_notice(family_of_experts, build, make_groups):
    """Among them an MLP that returns its router's scores too (gpt-oss), and values narrower than keys (DeepSeek)."""
    choice = choose_scorer(build(family_of_experts), make_groups(SHAPES[:2], 0))
    assert choice.notice is None
    assert isinstance(choice.scorer, TreeScorer)


def test_refused_families_run_padded_with_a_notice(refused_family, build, make_groups):
    model = build(refused_family)
    groups = make_groups(SHAPES, 0)
    choice = choose_scorer(model, groups[:2])
    assert isinstance(choice.scorer, PaddedScorer)
    assert type(model).__name__ in choice.notice
    assert "padded" in choice.notice
    scored = score_groups(choice.scorer, groups, world=ALONE, budget=100, dtype="float32")
    for group, log_probs in zip(groups, scored, strict=True):
        assert log_probs == pytest.approx(one_by_one(model, group), rel=1e-4, abs=1e-3)


def test_a_tree_that_is_wrong_is_caught_at_load(build, make_groups, monkeypatch):
    def full_bias(self, tile, dtype):
        sides = self.tiles[tile].queries, self.tiles[tile].keys
        queries, keys = (sum(end - start for start, end in spans) for spans in sides)
        return torch.zeros(queries, keys, dtype=dtype)

    monkeypatch.setattr(Tiling, "bias", full_bias)
    model = build("llama")
    implementation = model.config._attn_implementation
    choice = choose_scorer(model, make_groups(SHAPES[:2], 0))
    assert isinstance(choice.scorer, PaddedScorer)
    assert "differ" in choice.notice
    assert model.config._attn_implementation == implementation


def test_budget_changes_nothing(build, make_groups):
    groups = make_groups(SHAPES, 1)
    scorer = choose_scorer(build("llama"), groups[:2]).scorer
    whole = score_groups(scorer, groups, world=ALONE, budget=10_000, dtype="float32")
    assert [len(row) for row in whole] == [2, 1, 5, 2, 3]
    for budget in (1, 20, 60):
        parts = score_groups(scorer, groups, world=ALONE, budget=budget, dtype="float32")
        for mine, theirs in zip(parts, whole, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5)


def test_warm_cache_gives_the_bits_of_the_cold_one_without_a_forward(build, make_groups, tmp_path, monkeypatch):
    groups = make_groups(SHAPES, 2)
    scorer = choose_scorer(build("llama"), groups[:2]).scorer
    cache = LogProbCache("model", "tree float32 cpu", tmp_path)
    cold = score_groups(scorer, groups, world=ALONE, budget=40, dtype="float32", cache=cache)
    monkeypatch.setattr(scoring, "_forward", None)
    assert score_groups(scorer, groups, world=ALONE, budget=40, dtype="float32", cache=cache) == cold


def test_scoring_leaves_the_mode_as_it_was(build, make_groups):
    groups = make_groups(SHAPES, 3)
    for training in (True, False):
        model = build("llama").train(training)
        scorer = choose_scorer(model, groups[:2]).scorer.train(training)
        score_groups(scorer, groups, world=ALONE, budget=40, dtype="float32")
        assert model.training == scorer.training == training


def test_bfloat16_is_close(build, make_groups):
    batch = pack(make_groups(SHAPES, 4))
    model = build("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.div_(8.0)
    scorer = choose_scorer(model, make_groups(SHAPES[:2], 4)).scorer
    with torch.no_grad():
        single = scorer(batch)
        with precision(ALONE.device, "bfloat16"):
            half = scorer(batch)
    assert half.dtype == torch.float64
    torch.testing.assert_close(half, single, rtol=2e-2, atol=0)
    assert not torch.equal(half, single)


def test_zeros_on_the_left_of_a_dimension():
    x = torch.tensor([[1, 2], [3, 4]])
    assert pad_left(x, 3).tolist() == [[0, 1, 2], [0, 3, 4]]
    assert pad_left(x, 4, dim=-2).tolist() == [[0, 0], [0, 0], [1, 2], [3, 4]]
    assert pad_left(x, 2) is x
