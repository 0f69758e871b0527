"""The gate: exact p-values by hand, and how often a learner that is no better is served."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penchant.recipes.self_improve.gate import better_p, choose, findable_gain


def test_p_values_by_hand() -> None:
    # Five prompts gained, one lost: of 64 ways to turn six signs, 1 + 6 have a sum of 4 or more.
    assert better_p([1, 1, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 1, 1], 1) == pytest.approx(7 / 64)
    assert better_p([0, 0], [1, 1], 1) == 1.0
    assert better_p([1, 0, 0.5], [1, 0, 0.5], 2) == 1.0
    # Differences of 2 and 1 answers: +3 in one of four ways, +1 or more in two.
    assert better_p([1.0, 0.5], [0.0, 0.0], 2) == 0.25
    assert better_p([1.0, 0.0], [0.0, 0.5], 2) == 0.5


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_p_values_are_those_of_all_sign_flips(rows) -> None:
    candidate, served = np.array(rows).T / 3
    differences = [a - b for a, b in rows]
    sums = [
        sum(sign * d for sign, d in zip(signs, differences, strict=True))
        for signs in product((-1, 1), repeat=len(rows))
    ]
    expected = np.mean([total >= sum(differences) for total in sums])
    assert better_p(candidate, served, 3) == pytest.approx(expected)


def test_who_is_served() -> None:
    none, most, all_of_them = [0.0] * 8, [1.0] * 6 + [0.0] * 2, [1.0] * 8
    assert choose({0: none, 3: none}, 0, 1, 0.05) == (0, {3: 1.0})
    assert choose({0: none, 3: most}, 0, 1, 0.05)[0] == 3
    assert choose({0: most, 3: all_of_them}, 0, 1, 0.05)[0] == 0  # Two prompts more: p = 1/4.
    # The first learner comes back where it is better than what is served; the better of two that pass, else the newest.
    assert choose({0: most, 2: none, 3: all_of_them}, 2, 1, 0.05)[0] == 3
    assert choose({0: all_of_them, 2: none, 3: most}, 2, 1, 0.05)[0] == 0
    assert choose({0: most, 2: none, 3: most}, 2, 1, 0.05)[0] == 3
    # Two candidates share the error: five gains are 1/32, below 0.05 and above 0.025.
    five = [1.0] * 5 + [0.0] * 3
    assert choose({0: none, 3: five}, 0, 1, 0.05)[0] == 3
    assert choose({0: none, 2: none, 3: five}, 2, 1, 0.05)[0] == 2


def rates(points: float, answers: int, seed: int, *, prompts: int = 200, runs: int = 1500) -> tuple[float, float]:
    """How often a learner better by some points is served, by the gate and by the larger share (ties to the newest)."""
    draw = np.random.default_rng(seed)
    gate, larger = 0, 0
    for _ in range(runs):
        served = draw.beta(1.2, 1.8, prompts)
        better = np.clip(served + draw.normal(0, 0.1, prompts), 0, 1)
        better = np.clip(better + points / 100 + served.mean() - better.mean(), 0, 1)
        old, new = (draw.binomial(answers, chance) / answers for chance in (served, better))
        gate += choose({0: old.tolist(), 1: new.tolist()}, 0, answers, 0.05)[0] == 1
        larger += new.mean() >= old.mean()
    return gate / runs, larger / runs


@pytest.mark.parametrize("answers", [1, 2])
def test_a_learner_that_is_one_point_worse_is_hardly_ever_served(answers) -> None:
    gate, larger = rates(-1.0, answers, seed=answers)
    assert gate <= 0.05
    assert larger > 0.3  # What the gate is there for.


def test_a_learner_that_is_no_better_is_served_as_often_as_stated() -> None:
    # Two standard errors of the simulation around the level, which whole numbers keep it below.
    assert 0.02 <= rates(0.0, 2, seed=7)[0] <= 0.061


def test_a_learner_that_is_as_much_better_as_the_gate_can_find_is_served() -> None:
    gain = findable_gain(200, 2, 0.05)
    assert gain == pytest.approx(0.0786, abs=1e-4)
    assert rates(100 * gain, 2, seed=9, runs=500)[0] >= 0.75


def test_where_nothing_could_pass() -> None:
    assert findable_gain(4, 1, 0.05) is None
    assert findable_gain(5, 1, 0.05) is not None
