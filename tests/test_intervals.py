from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from penchant.intervals import Mixture, critical_ratio, critical_value, f_tail, two_sided_p

# Printed tables of Student's t: (level, degrees of freedom, critical value).
TABLE = [
    (0.05, 1, 12.7062),
    (0.05, 2, 4.30265),
    (0.05, 4, 2.77645),
    (0.05, 9, 2.26216),
    (0.05, 30, 2.04227),
    (0.05, 120, 1.97993),
    (0.01, 2, 9.92484),
    (0.01, 4, 4.60409),
    (0.001, 2, 31.5991),
    (0.2, 10, 1.37218),
]


@pytest.mark.parametrize(("level", "df", "t"), TABLE)
def test_tables(level: float, df: float, t: float) -> None:
    assert critical_value(level, df) == pytest.approx(t, rel=5e-6)
    assert two_sided_p(t, df) == pytest.approx(level, rel=2e-5)


def test_closed_forms() -> None:
    # One degree of freedom is Cauchy, two have P(|T| > t) = 1 - t / sqrt(2 + t²).
    for t in (1e-3, 0.5, 1.0, 7.0, 300.0):
        assert two_sided_p(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert two_sided_p(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)


def test_many_degrees_are_normal() -> None:
    assert critical_value(0.05, 1e7) == pytest.approx(1.959964, rel=1e-6)
    assert two_sided_p(3.0, 1e7) == pytest.approx(math.erfc(3 / math.sqrt(2)), rel=1e-5)


def test_ends() -> None:
    assert two_sided_p(0.0, 3.7) == 1.0
    assert two_sided_p(math.inf, 3.7) == 0.0


@given(st.floats(1e-9, 0.999), st.floats(1.0, 1e5))
def test_inverse_of_each_other(level: float, df: float) -> None:
    assert two_sided_p(critical_value(level, df), df) == pytest.approx(level, rel=1e-5)


@given(st.floats(1e-6, 0.9), st.floats(0.0, 1.0), st.floats(1.0, 9.0), st.floats(9.0, 1e4))
def test_a_mixtures_critical_value_lies_between_its_parts(level: float, share: float, few: float, many: float) -> None:
    mixture = Mixture(share, few, many)
    t = mixture.critical_value(level)
    assert mixture.two_sided_p(t) == pytest.approx(level, rel=1e-6)
    assert critical_value(level, many) * (1 - 1e-9) <= t <= critical_value(level, few) * (1 + 1e-9)


def test_mixture_by_hand() -> None:
    # With 1 and 2 degrees of freedom at t = 1: 0.5 and 1 - 1 / sqrt(3).
    assert Mixture(0.25, 1, 2).two_sided_p(1.0) == pytest.approx(0.125 + 0.75 * (1 - 3**-0.5), rel=1e-12)
    assert Mixture(1.0, 2, 50).critical_value(0.05) == pytest.approx(4.30265, rel=1e-5)
    assert Mixture(0.0, 2, 120).critical_value(0.05) == pytest.approx(1.97993, rel=1e-5)


@given(st.floats(0.0, 60.0), st.integers(1, 60), st.integers(1, 2000))
@example(2.220446049250313e-16, 1, 2)
def test_f_tail_is_one_less_the_distribution_function(ratio: float, numerator_df: int, denominator_df: int) -> None:
    assert f_tail(ratio, numerator_df, denominator_df) == pytest.approx(
        1 - stats.f.cdf(ratio, numerator_df, denominator_df), rel=1e-8, abs=1e-12
    )


def test_f_of_one_degree_is_t_squared() -> None:
    assert f_tail(4.30265**2, 1, 2) == pytest.approx(0.05, rel=1e-5)
    assert critical_ratio(0.05, 1, 2) == pytest.approx(4.30265**2, rel=1e-5)
    # Printed tables of F: 5 % and 1 % of 2 and 10 degrees of freedom.
    assert critical_ratio(0.05, 2, 10) == pytest.approx(4.10282, rel=1e-5)
    assert critical_ratio(0.01, 2, 10) == pytest.approx(7.55943, rel=1e-5)
