"""Win rates at equal lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from penchant.evaluation.statistics import mean_of_shares
from penchant.evaluation.win_rate import PRECISION, length_controlled


def test_it_is_sklearns_fit_with_the_intercept_left_alone():
    draw = np.random.default_rng(0)
    ours, theirs = draw.integers(20, 200, 300), draw.integers(20, 200, 300)
    chance = 1 / (1 + np.exp(-(1.5 + 0.01 * (ours - theirs))))
    wins = (draw.random(300) < chance).astype(float)
    difference = (ours - theirs).astype(float)
    inputs = np.tanh(difference / difference.std())[:, None]
    model = LogisticRegression(C=1 / PRECISION, tol=1e-10, max_iter=1000).fit(inputs, wins)
    expected = 1 / (1 + math.exp(-model.intercept_[0]))
    assert length_controlled(wins, ours, theirs).value == pytest.approx(expected, abs=1e-6)


def test_length_alone_wins_nothing():
    """Who wins exactly where the answer is longer, and is so half of the time, is at a half."""
    ours, theirs = [10, 20] * 100, [20, 10] * 100
    estimate = length_controlled([float(a > b) for a, b in zip(ours, theirs, strict=True)], ours, theirs)
    assert estimate.value == pytest.approx(0.5)
    assert estimate.low < 0.5 < estimate.high


def test_longer_answers_lose_their_advantage():
    """A side that is always longer and wins as often as length explains is brought down; the raw rate is not."""
    draw = np.random.default_rng(1)
    difference = draw.normal(30, 40, 2000)
    wins = (draw.random(2000) < 1 / (1 + np.exp(-0.03 * difference))).astype(float)
    theirs = np.full(2000, 200)
    estimate = length_controlled(wins, theirs + difference.astype(int), theirs)
    assert wins.mean() > 0.62
    assert 0.45 < estimate.value < 0.55
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize(
    "values", [[1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.5], [1.0] * 19 + [0.0], [1.0] * 8, [0.0] * 8, [0.5] * 8]
)
def test_at_equal_lengths_it_is_the_raw_rate_and_its_interval(values):
    n = len(values)
    estimate, raw = length_controlled(values, [7] * n, [7] * n), mean_of_shares(values, range(n))
    assert estimate.value == pytest.approx(raw.value, abs=1e-6)
    assert (estimate.low, estimate.high) == pytest.approx((raw.low, raw.high), abs=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.9, 0.95])
def test_no_rate_is_pulled_towards_a_half(rate):
    """Balanced lengths: the rate is as it is without the term, however many prompts there are."""
    wins = ([1.0] * round(100 * rate) + [0.0] * round(100 - 100 * rate)) * 2
    words, rival_words = [10] * 100 + [20] * 100, [20] * 100 + [10] * 100
    assert length_controlled(wins, words, rival_words).value == pytest.approx(rate, abs=1e-6)


@pytest.mark.parametrize("rate", [0.5, 0.8, 0.9])
@pytest.mark.parametrize(("effect", "longer"), [(0.0, 0.0), (1.5, 0.0), (1.5, 0.7)])
def test_intervals_cover_the_rate_at_equal_lengths(rate, effect, longer):
    draw, runs, n = np.random.default_rng(5), 500, 300
    covered = 0
    for _ in range(runs):
        difference = 100 * draw.normal(longer, 1, n)
        chance = 1 / (1 + np.exp(-(math.log(rate / (1 - rate)) + effect * np.tanh(difference / 100))))
        estimate = length_controlled(draw.random(n) < chance, difference, np.zeros(n))
        covered += estimate.low <= rate <= estimate.high
    # 93 to 97 %, and two standard errors of the simulation.
    assert 0.91 <= covered / runs <= 0.985


def test_all_won_or_one_or_none():
    won = length_controlled([1.0] * 20, range(20), range(5, 25))
    assert won.value == 1
    assert 0.75 < won.low < 0.9
    assert math.isnan(length_controlled([1.0], [3], [2]).low)
    assert math.isnan(length_controlled([], [], []).value)
