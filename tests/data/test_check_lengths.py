"""Length bias and its bootstrap over prompts, against closed forms and a plain resampling."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.check_lengths import resampled_share
from penchant.data.check_report import LengthBias, Share
from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup


def bias(*rows: tuple[str, str, str]) -> LengthBias:
    length_bias = check_groups([PreferenceGroup(prompt, (a, b), preferred=0) for prompt, a, b in rows]).length_bias
    assert length_bias is not None
    return length_bias


def share(hits: list[int], sizes: list[int], seed: int = 0) -> Share:
    return resampled_share(np.array(hits), np.array(sizes), seed=seed)


def test_hand_worked():
    length_bias = bias(("p", "aa", "b"), ("p", "aa", "bb"), ("q", "a", "bb"), ("q", "aaa", "bb"))
    assert (length_bias.unit, length_bias.longer.value, length_bias.longer.n, length_bias.equal) == (
        "characters",
        0.5,
        4,
        0.25,
    )
    assert length_bias.longer_where_unequal.value == pytest.approx(2 / 3)
    assert length_bias.longer_where_unequal.n == 3


def test_without_pairs_there_is_no_length_bias():
    assert check_groups([PreferenceGroup("p", ("a",), labels=(True,))]).length_bias is None


def test_all_longer():
    length_bias = bias(("p", "aa", "b"), ("q", "aaa", "b"))
    assert length_bias.longer == length_bias.longer_where_unequal == Share(1.0, 1.0, 1.0, 2)


def test_one_prompt_has_no_interval():
    assert bias(("p", "aa", "b"), ("p", "aaa", "b")).longer == Share(1.0, None, None, 2)


def test_one_prompt_with_unequal_pairs_has_no_interval():
    length_bias = bias(("p", "aa", "b"), ("q", "a", "b"))
    assert length_bias.longer.low is not None
    assert length_bias.longer_where_unequal == Share(1.0, None, None, 1)


def test_all_equal():
    length_bias = bias(("p", "a", "b"), ("q", "c", "d"))
    assert (length_bias.longer, length_bias.equal) == (Share(0.0, 0.0, 0.0, 2), 1.0)
    assert length_bias.longer_where_unequal == Share(None, None, None, 0)


def test_lengths_are_in_tokens_with_a_tokenizer(tiny_model):
    from transformers import AutoTokenizer

    groups = [
        PreferenceGroup("the", (" it to a", " house"), preferred=0),
        PreferenceGroup("a", (" a", " house"), preferred=0),
    ]
    characters = check_groups(groups).length_bias
    tokens = check_groups(groups, tokenizer=AutoTokenizer.from_pretrained(tiny_model)).length_bias
    assert (characters.unit, characters.longer.value, characters.equal) == ("characters", 0.5, 0.0)
    assert (tokens.unit, tokens.longer.value, tokens.equal) == ("tokens", 0.5, 0.5)


def test_ties_neither_hide_nor_reverse_a_length_bias():
    # Longer 40 %, equal 60 %: below one half of all pairs, yet the longer always wins.
    rows = [(f"p{n} ", "aa" if n % 5 < 2 else "b", "c") for n in range(100)]
    findings = check_groups([PreferenceGroup(p, (a, b), preferred=0) for p, a, b in rows]).findings
    (finding,) = (finding for finding in findings if finding.name == "length_bias")
    assert "the chosen is the longer in 100.0%" in finding.what


def test_a_bias_to_the_shorter_is_named():
    rows = [(f"p{n} ", "a" if n % 10 else "aaa", "bb") for n in range(100)]
    findings = check_groups([PreferenceGroup(p, (a, b), preferred=0) for p, a, b in rows]).findings
    (finding,) = (finding for finding in findings if finding.name == "length_bias")
    assert (finding.severity, finding.count) == ("warning", 100)
    assert finding.what.startswith("the chosen is the shorter in 90.0% [8")


def test_independent_pairs_have_the_binomial_interval():
    result = share([1] * 200 + [0] * 200, [1] * 400)
    # 1.96 * sqrt(0.25 / 400) = 0.049
    assert result.value == 0.5
    assert result.low == pytest.approx(0.451, abs=0.005)
    assert result.high == pytest.approx(0.549, abs=0.005)


def test_prompts_are_resampled_not_pairs():
    # The same 400 pairs in 16 prompts of 25 that agree: as wide as 16 coin tosses, 1.96 * sqrt(0.25 / 16) = 0.245.
    result = share([25] * 8 + [0] * 8, [25] * 16)
    assert result.low == pytest.approx(0.255, abs=0.03)
    assert result.high == pytest.approx(0.745, abs=0.03)


def test_the_interval_equals_resampling_prompts_one_by_one():
    draw = random.Random(1)
    sizes = [draw.randint(1, 6) for _ in range(40)]
    hits = [draw.randint(0, size) for size in sizes]
    shares = []
    for _ in range(4000):
        indices = draw.choices(range(40), k=40)
        shares.append(sum(hits[i] for i in indices) / sum(sizes[i] for i in indices))
    low, high = np.quantile(shares, (0.025, 0.975))
    result = share(hits, sizes)
    assert result.low == pytest.approx(low, abs=0.012)
    assert result.high == pytest.approx(high, abs=0.012)


def test_the_same_seed_gives_the_same_interval():
    hits, sizes = [0, 1, 2, 1, 0, 3], [1, 2, 2, 3, 1, 3]
    assert share(hits, sizes) == share(hits, sizes)
    assert share(hits, sizes) != share(hits, sizes, seed=1)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_interval_lies_between_0_and_1_and_ignores_the_order(rows):
    hits, misses = [hit for hit, _ in rows], [miss for _, miss in rows]
    sizes = [hit + miss for hit, miss in rows]
    result = share(hits, sizes)
    assert result == share(hits[::-1], sizes[::-1])
    assert result.n == sum(hits) + sum(misses)
    if result.low is not None:
        assert 0 <= result.low <= result.high <= 1
