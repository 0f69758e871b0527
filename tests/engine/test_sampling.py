"""Sampling: greedy tokens equal the library's, draws follow the probabilities, every prompt is read once."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import AttentionMaskInterface, sliding_window_causal_mask_function

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import pack
from penchant.engine import sampling
from penchant.engine.attention import TREE
from penchant.engine.decoding import UncachedRows, mask_of_padding
from penchant.engine.kernels.compiled import compile_layers
from penchant.engine.sampling import TOKENS_PER_READ, Sampling, choose_tokens, sample
from penchant.engine.scorer_choice import choose_scorer

PROMPTS = [np.array([5, 6, 7, 8, 9, 10, 11, 12, 13]), np.array([4]), np.array([9, 3, 5])]


@pytest.fixture
def like_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are chosen and read as on a card: sorted by their logits, several of every row in one read."""
    monkeypatch.setattr(sampling, "draws_on_host", lambda device: False)


@pytest.fixture(params=["a CPU's draws", "a card's draws"])
def both_draws(request: pytest.FixtureRequest) -> None:
    """Tokens as a CPU chooses and reads them, and as a card does."""
    if request.param == "a card's draws":
        request.getfixturevalue("like_a_card")


@pytest.fixture(params=["llama", "gemma3", "gpt2", "gpt-neox", "opt", "bloom", "mamba"])
def some_family(request) -> str:
    """Families with every kind of cache and positions; two have no tree, one no cache to share."""
    return request.param


@pytest.mark.usefixtures("both_draws")
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


def test_a_model_with_compiled_layers(build):
    """Its layers run uncompiled while tokens are generated, and compiled again afterwards."""
    model, draw, graphs = build("llama"), Sampling(samples=2, max_new_tokens=6, seed=1), []
    model.set_attn_implementation("sdpa")
    plain = sample(model, PROMPTS, draw, ends=[])

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compile_layers(model, backend)
    assert ids_of(sample(model, PROMPTS, draw, ends=[])) == ids_of(plain)
    assert graphs == []
    model(torch.tensor([[5, 6, 7]]), use_cache=False)
    assert len(graphs) == 2  # of the layers, and of the last norm


def test_each_prompt_is_read_once(build):
    model = build("llama")
    read = []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sample(model, PROMPTS, Sampling(samples=5, max_new_tokens=4), ends=[])
    assert read == [(3, 9), (15, 1), (15, 1), (15, 1)]


@pytest.mark.usefixtures("both_draws")
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


@pytest.mark.usefixtures("both_draws")
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


def ids_of(samples: Sequence[Sequence[Any]]) -> list[list[list[int]]]:
    return [[response.ids.tolist() for response in responses] for responses in samples]


DRAWN_IDS = {
    (1.0, 1.0): [
        [[27, 37, 18, 48, 43, 40], [26, 11, 3, 22, 17, 32, 9]],
        [[52, 0, 39, 38, 36, 19, 52, 34, 32, 6, 5], [36, 39, 39, 36, 21, 18, 14, 5, 43, 2]],
        [[14, 9], [49, 47, 33, 10, 48, 0, 43, 55, 2]],
    ],
    (0.7, 0.9): [
        [[11, 9], [13, 20, 46, 41, 39, 32, 47, 44, 27, 34, 9]],
        [[55, 42, 55, 60, 17, 47, 30, 29, 5, 40], [36, 36, 20, 49, 25, 0, 27, 30, 36, 39, 21]],
        [[50, 11, 9], [47, 9]],
    ],
    (1.4, 0.5): [
        [[41, 47, 11, 37, 30, 60, 30, 20, 24, 36, 9], [30, 32, 51, 34, 30, 20, 32, 32, 16, 18, 43]],
        [[21, 0, 56, 58, 41, 55, 4, 12, 23, 20, 54], [36, 27, 53, 42, 11, 18, 46, 29, 2]],
        [[2], [40]],
    ],
}
"""(temperature, top_p) -> the responses to each prompt, as they were drawn when every token was read."""


@pytest.mark.usefixtures("both_draws")
@pytest.mark.parametrize("setting", DRAWN_IDS)
def test_a_seed_draws_what_it_always_drew(build, setting):
    draw = Sampling(samples=2, max_new_tokens=11, temperature=setting[0], top_p=setting[1], seed=6)
    assert ids_of(sample(build("llama"), PROMPTS, draw, ends=[2, 7, 9, 40])) == DRAWN_IDS[setting]


@pytest.mark.parametrize("tokens", [1, TOKENS_PER_READ - 1, TOKENS_PER_READ, 2 * TOKENS_PER_READ + 3])
def test_a_cards_responses_end_where_a_cpus_do(build, monkeypatch, tokens):
    """Within the tokens of one read, at its first and its last; rows that have ended leave at a read."""
    model, draw = build("llama"), Sampling(samples=6, max_new_tokens=tokens, seed=2)
    expected = sample(model, PROMPTS, draw, ends=range(3, 9))
    monkeypatch.setattr(sampling, "draws_on_host", lambda device: False)
    samples = sample(model, PROMPTS, draw, ends=range(3, 9))
    assert ids_of(samples) == ids_of(expected)
    assert [[r.has_end for r in responses] for responses in samples] == [
        [r.has_end for r in responses] for responses in expected
    ]


class Reads(TorchDispatchMode):
    """Counts the values that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Reads of single values, and of lists, which do not pass through the dispatcher."""
    reads, to_list = Reads(), torch.Tensor.tolist

    def read_list(tensor: torch.Tensor) -> Any:
        reads.number += 1
        return to_list(tensor)

    with monkeypatch.context() as patch, reads:
        patch.setattr(torch.Tensor, "tolist", read_list)
        yield reads


@pytest.mark.usefixtures("like_a_card")
@pytest.mark.parametrize("name", ["llama", "mistral-window", "gpt2"])
@pytest.mark.parametrize("prompts", [PROMPTS, [PROMPTS[0], PROMPTS[0][::-1].copy()]], ids=["padded", "even"])
def test_a_card_is_read_once_for_several_tokens(build, monkeypatch, name, prompts):
    """The tokens of one read more are one read more, whatever attention asks about padding."""
    model = build(name)
    model.set_attn_implementation("sdpa")
    numbers = []
    for blocks in (1, 2):
        draw = Sampling(2, blocks * TOKENS_PER_READ, temperature=0.8, top_p=0.9)
        with counted_reads(monkeypatch) as reads:
            sample(model, prompts, draw, ends=[])
        numbers.append(reads.number)
    assert numbers[1] - numbers[0] == 1
    assert 1 <= numbers[0] <= 5  # the first read, and what transformers asks of the prompts' mask


@torch.no_grad()
def test_rows_without_a_cache_read_nothing(build, monkeypatch):
    rows = UncachedRows.from_prompts(build("mamba"), PROMPTS[1:])
    with counted_reads(monkeypatch) as reads:
        rows.feed(torch.tensor([7, 8]))
    assert reads.number == 0
    assert [row.tolist() for row in rows.rows] == [[4, 7], [9, 3, 5, 8]]


class TestMask:
    """The mask for rows whose padding is known equals the one that transformers makes of what it reads."""

    MASK = torch.tensor([[False, True, True, True, True], [True] * 5])

    @staticmethod
    def mask(rows: torch.Tensor, queries: int, window: int | None) -> torch.Tensor | None:
        function = {} if window is None else {"mask_function": sliding_window_causal_mask_function(window)}
        options = {"q_offset": 5 - queries, "local_size": window, "attention_mask": rows, **function}
        return AttentionMaskInterface()["sdpa"](len(rows), queries, 5, **options)

    @pytest.mark.parametrize("window", [None, 3, 9])
    @pytest.mark.parametrize("queries", [1, 5])
    @pytest.mark.parametrize("rows", [[0, 1], [1, 1]], ids=["padded", "even"])
    def test_equals_the_librarys(self, monkeypatch, rows, queries, window):
        is_padded = rows[0] == 0
        expected = self.mask(self.MASK[rows], queries, window)
        assert (expected is None) == (not is_padded and window != 3)
        with mask_of_padding(is_padded), counted_reads(monkeypatch) as reads:
            mask = self.mask(self.MASK[rows], queries, window)
        assert reads.number == 0
        assert (mask is None) == (expected is None)
        assert mask is None or torch.equal(mask, expected)

    def test_is_known_in_its_own_context_alone(self):
        """Neither another thread nor a later forward takes its word."""
        masks: list[torch.Tensor | None] = []
        with mask_of_padding(False):
            thread = threading.Thread(target=lambda: masks.append(self.mask(self.MASK, 1, None)))
            thread.start()
            thread.join()
        masks.append(self.mask(self.MASK, 1, None))
        for mask in masks:
            assert torch.equal(mask[:, 0, 0], self.MASK)


def nucleus(logits: np.ndarray, temperature: float, top_p: float) -> tuple[list[int], list[float]]:
    """The fewest likeliest tokens whose probability reaches `top_p`, the lower id first of equals, and their shares."""
    scaled = logits.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= math.fsum(probabilities)
    tokens: list[int] = []
    for token in np.lexsort((np.arange(len(logits)), -logits.astype(np.float64))).tolist():
        tokens.append(token)
        if math.fsum(probabilities[tokens]) >= top_p:
            break
    total = math.fsum(probabilities[tokens])
    return tokens, [probabilities[token] / total for token in tokens]


class TestNucleus:
    """Against a nucleus that is built token by token in float64."""

    @pytest.mark.usefixtures("both_draws")
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
    @pytest.mark.parametrize("top_p", [0.2, 0.9, 0.999, 1.0])
    def test_every_token_has_its_share_and_no_other_is_drawn(self, temperature, top_p):
        """Numbers on either side of every border between two tokens' shares."""
        logits = torch.randn(3, 200, generator=torch.Generator().manual_seed(0)) * 3
        for row in logits:
            tokens, shares = nucleus(row.numpy(), temperature, top_p)
            borders = np.minimum(np.concatenate([[0.0], np.cumsum(shares)]), 1.0)
            for side, edges in ((1e-9, borders[:-1]), (-1e-9, borders[1:])):
                # Where a share is narrower, its border is the next one's as well.
                is_wide = np.array(shares) > 4e-9
                chances = torch.from_numpy(edges + side)[is_wide]
                drawn_tokens = choose_tokens(row.expand(len(chances), -1), temperature, top_p, chances)
                assert drawn_tokens.tolist() == np.array(tokens)[is_wide].tolist()

    @pytest.mark.usefixtures("like_a_card")
    def test_of_equal_tokens_the_lower_comes_first(self):
        """In bfloat16 2,000 logits have half as many values."""
        logits = (torch.randn(4, 2000, generator=torch.Generator().manual_seed(1)) * 2).bfloat16()
        assert all(len(row.unique()) < 1100 for row in logits)
        for row in logits:
            tokens, shares = nucleus(row.float().numpy(), 0.7, 0.8)
            middles = torch.from_numpy(np.cumsum(shares) - np.array(shares) / 2)
            assert choose_tokens(row.expand(len(middles), -1), 0.7, 0.8, middles).tolist() == tokens

    @pytest.mark.usefixtures("both_draws")
    def test_scores_that_are_no_numbers_are_an_error(self):
        for top_p in (0.9, 1.0):
            with pytest.raises((IndexError, RuntimeError)):
                choose_tokens(torch.full((1, 5), math.nan), 1.0, top_p, torch.tensor([0.5]).double())


@pytest.mark.usefixtures("both_draws")
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
