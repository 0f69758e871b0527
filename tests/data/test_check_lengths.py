"""Length bias and its interval over prompts, against closed forms, the evaluation's interval and a plain resampling."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.check_findings import share_of_pairs
from penchant.data.check_report import LengthBias, Share
from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup
from penchant.evaluation.statistics import mean_of_shares


def bias(*rows: tuple[str, str, str]) -> LengthBias:
    length_bias = check_groups([PreferenceGroup(prompt, (a, b), preferred=0) for prompt, a, b in rows]).length_bias
    assert length_bias is not None
    return length_bias


def share(hits: list[int], sizes: list[int]) -> Share:
    return share_of_pairs(np.array(hits), np.array(sizes))


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
    length_bias = bias(*((f"p{number}", "aa", "b") for number in range(20)))
    assert length_bias.longer == length_bias.longer_where_unequal
    # 20 of 20 by Agresti and Coull with Student's quantile for 19 degrees of freedom, 2.0930.
    total = 20 + 2.0930**2
    centre = (20 + 2.0930**2 / 2) / total
    assert length_bias.longer.low == pytest.approx(centre - 2.0930 * (centre * (1 - centre) / total) ** 0.5, abs=1e-4)
    assert (length_bias.longer.value, length_bias.longer.high, length_bias.longer.n) == (1.0, 1.0, 20)


def test_one_prompt_has_no_interval():
    assert bias(("p", "aa", "b"), ("p", "aaa", "b")).longer == Share(1.0, None, None, 2)


def test_one_prompt_with_unequal_pairs_has_no_interval():
    length_bias = bias(("p", "aa", "b"), ("q", "a", "b"))
    assert length_bias.longer.low is not None
    assert length_bias.longer_where_unequal == Share(1.0, None, None, 1)


def test_all_equal():
    length_bias = bias(*((f"p{number}", "a", "b") for number in range(20)))
    assert (length_bias.longer.value, length_bias.longer.low, length_bias.longer.n, length_bias.equal) == (
        0.0,
        0.0,
        20,
        1.0,
    )
    assert 0.1 < length_bias.longer.high < 0.25
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


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_interval_equals_that_of_evaluate(rows):
    values = [value for hit, miss in rows for value in [1.0] * hit + [0.0] * miss]
    prompts = [number for number, (hit, miss) in enumerate(rows) for _ in range(hit + miss)]
    result, expected = (
        share([hit for hit, _ in rows], [hit + miss for hit, miss in rows]),
        mean_of_shares(values, prompts),
    )
    if result.low is None:
        assert len(set(prompts)) < 2
    else:
        assert (result.low, result.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.95, 0.99])
def test_the_interval_covers_shares_near_0_and_1(truth):
    """40 prompts of one to four pairs; the percentile bootstrap covers a share of 0.95 in 87 %, and of 0.99 in 55 %."""
    draw, covered, runs = np.random.default_rng(0), 0, 400
    for _ in range(runs):
        sizes = draw.integers(1, 5, 40)
        hits = draw.binomial(sizes, draw.beta(3 * truth, 3 * (1 - truth), 40))
        estimate = share_of_pairs(hits, sizes)
        covered += estimate.low <= truth <= estimate.high
    # Two standard errors of the simulation below 93 %.
    assert covered / runs >= 0.905


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
