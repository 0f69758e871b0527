"""Sampling: greedy tokens equal the library's, draws follow the probabilities, every prompt is read once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine.attention import TREE
from penchant.engine.sampling import Sampling, choose_tokens, sample
from penchant.engine.scorer_choice import choose_scorer

PROMPTS = [np.array([5, 6, 7, 8, 9, 10, 11, 12, 13]), np.array([4]), np.array([9, 3, 5])]


@pytest.fixture(params=["llama", "gemma3", "gpt2", "gpt-neox", "opt", "bloom", "mamba"])
def some_family(request) -> str:
    """Families with every kind of cache and positions; two have no tree, one no cache to share."""
    return request.param


def test_greedy_equals_the_library(build, some_family):
    model = build(some_family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that the likeliest token is clearly so
    samples = sample(model, PROMPTS, Sampling(samples=2, max_new_tokens=10, temperature=0, batch_size=2), ends=[2])
    for prompt, responses in zip(PROMPTS, samples, strict=True):
        ids = torch.from_numpy(prompt)[None]
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=10,
            do_sample=False,
            eos_token_id=2,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
        expected = out[: out.index(2) + 1] if 2 in out else out
        for response in responses:
            assert response.ids.tolist() == expected
            assert response.has_end == (2 in out)


def test_a_model_that_a_scorer_has_changed(build):
    """It generates with its own attention, and has the tree's again afterwards."""
    model = build("llama")
    plain = sample(model, PROMPTS, Sampling(samples=3, max_new_tokens=6, seed=1), ends=[2])
    group = PreferenceGroup("", ("a", "b"))
    choose_scorer(model, [TokenizedGroup(PROMPTS[0], (np.array([4, 2]), np.array([5, 2])), group)])
    assert model.config._attn_implementation == TREE
    model.train()
    scored_model_samples = sample(model, PROMPTS, Sampling(samples=3, max_new_tokens=6, seed=1), ends=[2])
    assert model.config._attn_implementation == TREE
    assert model.training
    ids = [[[r.ids.tolist() for r in responses] for responses in samples] for samples in (plain, scored_model_samples)]
    assert ids[0] == ids[1]


def test_each_prompt_is_read_once(build):
    model = build("llama")
    read = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(model, PROMPTS, Sampling(samples=5, max_new_tokens=4), ends=[])
    assert read == [(3, 9), (15, 1), (15, 1), (15, 1)]


def test_draws_depend_on_the_seed_and_the_prompts_number_alone(build):
    model = build("llama")
    whole = sample(model, PROMPTS, Sampling(samples=3, max_new_tokens=8, seed=4), ends=[2])
    alone = sample(model, PROMPTS, Sampling(samples=3, max_new_tokens=8, seed=4, batch_size=1), ends=[2])
    other = sample(model, PROMPTS, Sampling(samples=3, max_new_tokens=8, seed=5), ends=[2])
    ids = [[[r.ids.tolist() for r in responses] for responses in samples] for samples in (whole, alone, other)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]
    assert len({tuple(r) for r in ids[0][0]}) == 3
    state = torch.get_rng_state()
    sample(model, PROMPTS, Sampling(samples=1, max_new_tokens=2), ends=[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompts_number_can_be_given(build):
    """Alone, or in another order: a prompt's draws depend on its number, which may be a hash."""
    model, draw, numbers = build("llama"), Sampling(samples=2, max_new_tokens=6, seed=3), [7, 2**63 - 1, 0]
    expected_ids = [
        [response.ids.tolist() for response in samples]
        for samples in sample(model, PROMPTS, draw, ends=[2], numbers=numbers)
    ]
    for prompt, number, expected in zip(PROMPTS, numbers, expected_ids, strict=True):
        [alone] = sample(model, [prompt], draw, ends=[2], numbers=[number])
        assert [response.ids.tolist() for response in alone] == expected
    repeated = sample(model, [PROMPTS[0]] * 3, draw, ends=[2], numbers=[7, 7, 8])
    with_number_7, again_with_7, with_number_8 = (
        [response.ids.tolist() for response in samples] for samples in repeated
    )
    assert with_number_7 == again_with_7 == expected_ids[0] != with_number_8


def test_the_first_token_follows_the_softmax(build):
    """Chi-square of 4000 draws over the likeliest tokens, the rest pooled."""
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
        expected = (model(torch.from_numpy(PROMPTS[0])[None]).logits[0, -1] / 1.3).softmax(-1)
    samples = sample(model, PROMPTS[:1], Sampling(samples=4000, max_new_tokens=1, temperature=1.3, seed=0), ends=[])
    counts = torch.bincount(torch.tensor([int(r.ids[0]) for r in samples[0]]), minlength=len(expected)).double()
    top = expected.argsort(descending=True)[:8]
    is_rare = torch.ones(len(expected), dtype=torch.bool)
    is_rare[top] = False
    observed = torch.cat([counts[top], counts[is_rare].sum()[None]])
    expected_counts = 4000 * torch.cat([expected[top], expected[is_rare].sum()[None]]).double()
    assert expected_counts.min() > 10
    assert float(((observed - expected_counts) ** 2 / expected_counts).sum()) < 26.1  # 8 degrees of freedom, p = 0.001


def test_an_end_token_ends_and_is_kept(build):
    model = build("llama")
    samples = sample(model, PROMPTS, Sampling(samples=40, max_new_tokens=30, seed=2), ends=list(range(30)))
    for responses in samples:
        for response in responses:
            assert response.has_end == (int(response.ids[-1]) < 30)
            assert all(int(token) >= 30 for token in response.ids[:-1])
            assert response.has_end or len(response.ids) == 30
    assert all(r.has_end for responses in samples for r in responses)


def test_the_scorer_gives_sampled_responses_their_log_prob(build):
    """The tree's log-prob of a greedy response is the sum of the likeliest tokens' log-probs."""
    model = build("llama")
    samples = sample(model, PROMPTS[:1], Sampling(samples=1, max_new_tokens=5, temperature=0), ends=[])
    ids = samples[0][0].ids
    group = TokenizedGroup(PROMPTS[0], (ids, ids[:1]), PreferenceGroup("", ("a", "b")))
    scorer = choose_scorer(model, [group]).scorer
    log_prob = float(scorer(pack([group]))[0, 0].detach())
    expected = 0.0
    for i in range(5):
        with torch.no_grad():
            model.set_attn_implementation("eager")
            logits = model(torch.from_numpy(np.concatenate([PROMPTS[0], ids[:i]]))[None]).logits[0, -1]
        expected += float(logits.log_softmax(-1).max())
    assert log_prob == pytest.approx(expected, rel=1e-5)


class TestChoose:
    LOGITS = torch.tensor([0.5, 0.3, 0.2]).log()[None]

    @pytest.mark.parametrize(
        ("chance", "top_p", "token"),
        [
            (0.0, 1.0, 0),
            (0.499, 1.0, 0),
            (0.501, 1.0, 1),
            (0.799, 1.0, 1),
            (0.801, 1.0, 2),
            (0.999999, 1.0, 2),
            (0.624, 0.6, 0),
            (0.626, 0.6, 1),
            (0.999999, 0.6, 1),
            (0.9, 0.5, 0),
            (0.99, 0.3, 0),
        ],
    )
    def test_a_uniform_number_picks_the_token_whose_share_it_falls_in(self, chance, top_p, token):
        tokens = choose_tokens(self.LOGITS, 1.0, top_p, torch.tensor([chance]).double())
        assert int(tokens[0]) == token

    def test_temperature(self):
        """At 1/2 the shares are 25 : 9 : 4."""
        for chance, token in ((0.657, 0), (0.659, 1), (0.894, 1), (0.896, 2)):
            assert int(choose_tokens(self.LOGITS, 0.5, 1.0, torch.tensor([chance]).double())[0]) == token
        assert int(choose_tokens(self.LOGITS, 0, 1.0, torch.tensor([0.99]).double())[0]) == 0

    def test_impossible_tokens_are_never_drawn(self):
        logits = torch.tensor([[0.0, -math.inf, 0.0]])
        tokens = {
            int(choose_tokens(logits, 1.0, 1.0, torch.tensor([c]).double())[0]) for c in np.linspace(0, 0.999999, 50)
        }
        assert tokens == {0, 2}
