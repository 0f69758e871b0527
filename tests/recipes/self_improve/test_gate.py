"""The gate: exact p-values by hand, and the rate at which a learner that is no better is served."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.recipes.self_improve.gate import choose_served, detectable_gain, randomisation_p_value


def test_p_values_by_hand() -> None:
    # Five prompts gained, one lost: of 64 ways to flip six signs, 1 + 6 have a sum of 4 or more.
    assert randomisation_p_value([1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1], 1) == pytest.approx(7 / 64)
    assert randomisation_p_value([0, 0], [1, 1], 1) == 1.0
    assert randomisation_p_value([1, 0, 0.5], [1, 0, 0.5], 2) == 1.0
    # Differences of 2 and 1 answers: +3 in one of four ways, +1 or more in two.
    assert randomisation_p_value([1.0, 0.5], [0.0, 0.0], 2) == 0.25
    assert randomisation_p_value([1.0, 0.0], [0.0, 0.5], 2) == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_p_values_are_those_of_all_sign_flips(rows) -> None:
    candidate, served = np.array(rows).T / 3
    differences = [a - b for a, b in rows]
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in product((-1, 1), repeat=len(rows))
    ]
    expected = np.mean([total >= sum(differences) for total in sums])
    assert randomisation_p_value(candidate, served, 3) == pytest.approx(expected)


def test_served_learner_by_hand() -> None:
    no_successes, six_successes, eight_successes = [0.0] * 8, [1.0] * 6 + [0.0] * 2, [1.0] * 8
    assert choose_served({0: no_successes, 3: no_successes}, 0, 1, 0.05) == (0, {3: 1.0})
    assert choose_served({0: no_successes, 3: six_successes}, 0, 1, 0.05)[0] == 3
    assert choose_served({0: six_successes, 3: eight_successes}, 0, 1, 0.05)[0] == 0  # Two prompts more: p = 1/4.
    # The first learner is served again if it is better; of two that pass the better one is, the newest in a tie.
    assert choose_served({0: six_successes, 2: no_successes, 3: eight_successes}, 2, 1, 0.05)[0] == 3
    assert choose_served({0: eight_successes, 2: no_successes, 3: six_successes}, 2, 1, 0.05)[0] == 0
    assert choose_served({0: six_successes, 2: no_successes, 3: six_successes}, 2, 1, 0.05)[0] == 3
    # Two candidates share the error: five gains are 1/32, below 0.05 and above 0.025.
    five_successes = [1.0] * 5 + [0.0] * 3
    assert choose_served({0: no_successes, 3: five_successes}, 0, 1, 0.05)[0] == 3
    assert choose_served({0: no_successes, 2: no_successes, 3: five_successes}, 2, 1, 0.05)[0] == 2


def rates(points: float, answers: int, seed: int, *, prompts: int = 200, runs: int = 1500) -> tuple[float, float]:
    """Rates at which a learner that is better by some points is served: by the gate, and by the larger mean share."""
    draw = np.random.default_rng(seed)
    gate, larger = 0, 0
    for _ in range(runs):
        served = draw.beta(1.2, 1.8, prompts)
        better = np.clip(served + draw.normal(0, 0.1, prompts), 0, 1)
        better = np.clip(better + points / 100 + served.mean() - better.mean(), 0, 1)
        old, new = (draw.binomial(answers, chance) / answers for chance in (served, better))
        gate += choose_served({0: old.tolist(), 1: new.tolist()}, 0, answers, 0.05)[0] == 1
        larger += new.mean() >= old.mean()
    return gate / runs, larger / runs


@pytest.mark.parametrize("answers", [1, 2])
def test_learner_that_is_one_point_worse_is_rarely_served(answers) -> None:
    gate, larger = rates(-1.0, answers, seed=answers)
    assert gate <= 0.05
    assert larger > 0.3  # Without the gate.


def test_learner_that_is_no_better_is_served_at_the_stated_rate() -> None:
    # Two standard errors of the simulation around the level; the discrete test stays below it.
    assert 0.02 <= rates(0.0, 2, seed=7)[0] <= 0.061


def test_learner_with_the_detectable_gain_is_served() -> None:
    gain = detectable_gain(200, 2, 0.05)
    assert gain == pytest.approx(0.0786, abs=1e-4)
    assert rates(100 * gain, 2, seed=9, runs=500)[0] >= 0.75


def test_no_detectable_gain_with_few_prompts() -> None:
    assert detectable_gain(4, 1, 0.05) is None
    assert detectable_gain(5, 1, 0.05) is not None
