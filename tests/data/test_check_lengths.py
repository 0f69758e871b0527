"""Length bias and its interval over prompts, against closed forms, the evaluation's interval and a plain resampling."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penchant.data.check_lengths import share_of_pairs
from penchant.data.check_report import LengthBias, Share
from penchant.data.checks import check_groups
from penchant.data.groups import PreferenceGroup
from penchant.evaluation.statistics import mean_of_shares


def bias(*rows: tuple[str, str, str]) -> LengthBias:
    found = check_groups([PreferenceGroup(prompt, (a, b), preferred=0) for prompt, a, b in rows]).length_bias
    assert found is not None
    return found


def share(hits: list[int], sizes: list[int]) -> Share:
    return share_of_pairs(np.array(hits), np.array(sizes))


def test_hand_worked():
    found = bias(("p", "aa", "b"), ("p", "aa", "bb"), ("q", "a", "bb"), ("q", "aaa", "bb"))
    assert (found.unit, found.longer.value, found.longer.n, found.equal) == ("characters", 0.5, 4, 0.25)
    assert found.longer_where_unequal.value == pytest.approx(2 / 3)
    assert found.longer_where_unequal.n == 3


def test_no_pairs_is_no_bias():
    assert check_groups([PreferenceGroup("p", ("a",), labels=(True,))]).length_bias is None


def test_all_longer():
    found = bias(*((f"p{number}", "aa", "b") for number in range(20)))
    assert found.longer == found.longer_where_unequal
    # 20 of 20 by Agresti and Coull with Student's quantile for 19 degrees of freedom, 2.0930.
    total = 20 + 2.0930**2
    centre = (20 + 2.0930**2 / 2) / total
    assert found.longer.low == pytest.approx(centre - 2.0930 * (centre * (1 - centre) / total) ** 0.5, abs=1e-4)
    assert (found.longer.value, found.longer.high, found.longer.n) == (1.0, 1.0, 20)


def test_one_prompt_has_no_interval():
    assert bias(("p", "aa", "b"), ("p", "aaa", "b")).longer == Share(1.0, None, None, 2)


def test_one_prompt_with_unequal_pairs_has_no_interval_there():
    found = bias(("p", "aa", "b"), ("q", "a", "b"))
    assert found.longer.low is not None
    assert found.longer_where_unequal == Share(1.0, None, None, 1)


def test_all_equal():
    found = bias(*((f"p{number}", "a", "b") for number in range(20)))
    assert (found.longer.value, found.longer.low, found.longer.n, found.equal) == (0.0, 0.0, 20, 1.0)
    assert 0.1 < found.longer.high < 0.25
    assert found.longer_where_unequal == Share(None, None, None, 0)


def test_tokens_not_characters(tiny_model):
    from transformers import AutoTokenizer

    groups = [
        PreferenceGroup("the", (" it to a", " house"), preferred=0),
        PreferenceGroup("a", (" a", " house"), preferred=0),
    ]
    characters = check_groups(groups).length_bias
    tokens = check_groups(groups, tokenizer=AutoTokenizer.from_pretrained(tiny_model)).length_bias
    assert (characters.unit, characters.longer.value, characters.equal) == ("characters", 0.5, 0.0)
    assert (tokens.unit, tokens.longer.value, tokens.equal) == ("tokens", 0.5, 0.5)


def test_ties_do_not_hide_a_bias_nor_turn_it_round():
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
    found = share([1] * 200 + [0] * 200, [1] * 400)
    # 1.96 * sqrt(0.25 / 400) = 0.049
    assert found.value == 0.5
    assert found.low == pytest.approx(0.451, abs=0.005)
    assert found.high == pytest.approx(0.549, abs=0.005)


def test_prompts_are_resampled_not_pairs():
    # The same 400 pairs in 16 prompts of 25 that agree: as wide as 16 coin tosses, 1.96 * sqrt(0.25 / 16) = 0.245.
    found = share([25] * 8 + [0] * 8, [25] * 16)
    assert found.low == pytest.approx(0.255, abs=0.03)
    assert found.high == pytest.approx(0.745, abs=0.03)


def test_as_drawing_prompts_one_by_one():
    draw = random.Random(1)
    sizes = [draw.randint(1, 6) for _ in range(40)]
    hits = [draw.randint(0, size) for size in sizes]
    shares = []
    for _ in range(4000):
        drawn = draw.choices(range(40), k=40)
        shares.append(sum(hits[i] for i in drawn) / sum(sizes[i] for i in drawn))
    low, high = np.quantile(shares, (0.025, 0.975))
    found = share(hits, sizes)
    assert found.low == pytest.approx(low, abs=0.012)
    assert found.high == pytest.approx(high, abs=0.012)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=50, deadline=None)
def test_the_interval_is_the_evaluations(rows):
    values = [value for hit, miss in rows for value in [1.0] * hit + [0.0] * miss]
    prompts = [number for number, (hit, miss) in enumerate(rows) for _ in range(hit + miss)]
    counted, expected = (
        share([hit for hit, _ in rows], [hit + miss for hit, miss in rows]),
        mean_of_shares(values, prompts),
    )
    if counted.low is None:
        assert len(set(prompts)) < 2
    else:
        assert (counted.low, counted.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize("truth", [0.5, 0.9, 0.95, 0.99])
def test_the_interval_covers_near_its_bounds(truth):
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
def test_the_interval_is_of_shares_and_knows_no_order(rows):
    hits, others = [hit for hit, _ in rows], [other for _, other in rows]
    sizes = [hit + other for hit, other in rows]
    found = share(hits, sizes)
    assert found == share(hits[::-1], sizes[::-1])
    assert found.n == sum(hits) + sum(others)
    if found.low is not None:
        assert 0 <= found.low <= found.high <= 1
