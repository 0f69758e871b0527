"""Responses with tokens that are only read: the tree and the padded rows against transformers' own loss in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from penchant.data.second_reading import add_mismatched
from penchant.data.trees import pack
from penchant.engine.scorer_choice import choose_scorer
from penchant.engine.tree import TreeScorer, use_tree
from penchant.evaluation.choices_scoring import without_end
from penchant.evaluation.held_out import scored_groups
from penchant.recipes.recommend.catalogue import pack_trie
from penchant.storage.caches import LogProbCache
from penchant.training.inputs import _fingerprint

SHAPES = [(9, (14, 7)), (1, (9, 3, 5)), (30, (25,))]
FAMILIES = ["llama", "llama-tied", "qwen3", "mistral-window", "gemma3", "gpt2", "phi3"]


@pytest.fixture
def groups(make_groups):
    """Masks as turns make them, with long and short stretches; the last token is learnt, and one group is whole."""
    draw = np.random.default_rng(5)
    masked = []
    for number, group in enumerate(make_groups(SHAPES, 3)):
        masks = [np.repeat(draw.random(9) < 0.5, draw.integers(1, 5, 9))[: len(r)] for r in group.responses]
        masks = [
            np.concatenate([mask, np.ones(len(r) - len(mask), bool)])
            for mask, r in zip(masks, group.responses, strict=True)
        ]
        for mask in masks:
            mask[-1] = True
        masked.append(replace(group, loss_masks=None if number == 1 else tuple(masks)))
    return masked


def oracle(model, group, k):
    """-sum of transformers' loss over labels that are -100 where nothing is learnt."""
    ids = torch.tensor([*group.prompt.tolist(), *group.responses[k].tolist()])
    labels = torch.full_like(ids, -100)
    labels[len(group.prompt) :][torch.from_numpy(group.masks[k])] = ids[len(group.prompt) :][
        torch.from_numpy(group.masks[k])
    ]
    logits = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
    is_target = labels[1:] != -100
    return logits[:-1][is_target].gather(-1, labels[1:][is_target][:, None]).sum(), int(is_target.sum())


@pytest.mark.parametrize("name", FAMILIES)
def test_log_probs_and_gradients_are_those_of_the_learnt_tokens(name, build, groups, all_float64, score_both_ways):
    model = build(name).double()
    batch = pack(groups)
    with all_float64():
        sums = torch.stack([oracle(model, group, k)[0] for group in groups for k in range(len(group.responses))])
        weights = torch.linspace(-1, 1, len(sums), dtype=torch.float64)
        (sums * weights).sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    for log_probs, gradients in score_both_ways(model, batch, batch.to_group_matrix(weights)):
        torch.testing.assert_close(log_probs.flatten()[batch.slots], sums.detach(), rtol=1e-10, atol=0)
        for parameter, gradient in expected.items():
            error = (gradients[parameter] - gradient).norm()
            assert error <= 1e-8 * gradient.norm() + 1e-12, parameter


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_candidates_that_share_their_beginnings(name, build, groups, all_float64):
    model = build(name).double()
    group = groups[0]
    shared = np.concatenate([group.responses[0][:6], group.responses[1]])
    masks = (group.loss_masks[0], np.concatenate([group.loss_masks[0][:6], group.loss_masks[1]]))
    group = replace(group, responses=(group.responses[0], shared), loss_masks=masks)
    with all_float64():
        expected = torch.stack([oracle(model, group, k)[0] for k in range(2)])
        use_tree(model)
        log_probs = TreeScorer(model)(pack_trie(group))[0]
    torch.testing.assert_close(log_probs, expected, rtol=1e-10, atol=0)


def test_lengths_are_the_learnt_tokens(build, groups):
    model = build("llama")
    counts = [[oracle(model, group, k)[1] for k in range(len(group.responses))] for group in groups]
    assert [list(group.tokens) for group in groups] == counts
    assert pack(groups).lengths.tolist() == [n for row in counts for n in row]
    log_probs = [[-1.0] * len(row) for row in counts]
    assert [list(group.tokens) for group in scored_groups(groups, log_probs, None)] == counts


def test_the_last_token_is_left_out_of_the_mask_too(groups):
    shortened = without_end(groups[0])
    assert [len(mask) for mask in shortened.masks] == [len(response) for response in shortened.responses]
    assert shortened.tokens == tuple(n - 1 for n in groups[0].tokens)


def test_another_mask_is_another_key_and_another_run(groups, tmp_path):
    unmasked = [replace(group, loss_masks=None) for group in groups]
    cache = LogProbCache("model", "how", tmp_path)
    cache.keep(pack(unmasked), [-1.0] * 6)
    assert cache.look_up([pack(groups)]) == {}
    assert cache.look_up([pack(unmasked)]) == {0: [-1.0] * 6}
    assert len({_fingerprint(unmasked), _fingerprint(groups), _fingerprint([*groups[:2], unmasked[2]])}) == 3


def test_the_self_check_reads_masked_groups(build, groups):
    choice = choose_scorer(build("llama"), groups[:2])
    assert isinstance(choice.scorer, TreeScorer)
    assert choice.notice is None


def test_a_borrowed_response_keeps_its_mask(groups):
    prompts = [replace(g, group=replace(g.group, prompt=str(i))) for i, g in enumerate(groups)]
    for group in add_mismatched(prompts, 0, 100):
        assert [len(mask) for mask in group.masks] == [len(response) for response in group.responses]
        lender = next(
            (g, k)
            for g in prompts
            for k, response in enumerate(g.responses)
            if np.array_equal(response, group.responses[-1])
        )
        assert np.array_equal(group.masks[-1], lender[0].masks[lender[1]])
