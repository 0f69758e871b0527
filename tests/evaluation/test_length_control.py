"""Win rates at equal lengths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from penchant.evaluation.length_control import RIDGE, length_controlled


def test_it_is_sklearns_fit():
    draw = np.random.default_rng(0)
    ours, theirs = draw.integers(20, 200, 300), draw.integers(20, 200, 300)
    chance = 1 / (1 + np.exp(-(0.3 + 0.01 * (ours - theirs))))
    wins = (draw.random(300) < chance).astype(float)
    difference = (ours - theirs).astype(float)
    inputs = np.stack([np.ones(300), np.tanh(difference / difference.std())], 1)
    model = LogisticRegression(fit_intercept=False, C=1 / (RIDGE * 300), tol=1e-10, max_iter=1000).fit(inputs, wins)
    expected = 1 / (1 + math.exp(-model.coef_[0, 0]))
    assert length_controlled(wins, ours, theirs, resamples=2).value == pytest.approx(expected, abs=1e-6)


def test_length_alone_wins_nothing():
    """Who wins exactly where the answer is longer, and is so half of the time, is at a half."""
    ours, theirs = [10, 20] * 100, [20, 10] * 100
    found = length_controlled([float(a > b) for a, b in zip(ours, theirs, strict=True)], ours, theirs, resamples=200)
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high


def test_longer_answers_lose_their_advantage():
    """A side that is always longer and wins as often as length explains is brought down; the raw rate is not."""
    draw = np.random.default_rng(1)
    difference = draw.normal(30, 40, 2000)
    wins = (draw.random(2000) < 1 / (1 + np.exp(-0.03 * difference))).astype(float)
    theirs = np.full(2000, 200)
    found = length_controlled(wins, theirs + difference.astype(int), theirs, resamples=100)
    assert wins.mean() > 0.62
    assert 0.45 < found.value < 0.55
    assert found.low < found.value < found.high


def test_at_equal_lengths_it_is_the_rate():
    values = [1.0, 1.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.5]
    found = length_controlled(values, [7] * 8, [7] * 8, resamples=50)
    assert found.value == pytest.approx(sum(values) / 8, abs=0.02)


def test_all_won_or_one_or_none():
    won = length_controlled([1.0] * 20, range(20), range(5, 25), resamples=50)
    assert 0.9 < won.value < 1
    assert math.isnan(length_controlled([1.0], [3], [2]).low)
    assert math.isnan(length_controlled([], [], []).value)
