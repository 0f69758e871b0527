"""The bound for methods whose seeds agree, beside scipy and plain numbers."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from penchant.evaluation.comparisons import Difference, holm
from penchant.evaluation.variance_components import (
    CrossedMean,
    Variances,
    adjusted_p,
    agreeing_half_width,
    agreeing_methods,
    agreeing_p,
    floor_half_width,
    floor_p,
    half_width,
    method_agrees,
    share_of_level,
)

QUIET = Variances(seed=-0.0001, prompt=0.2, residual=0.3)


def difference(value: float, variances: Variances = QUIET, seeds: int = 3, prompts: int = 300) -> Difference:
    half = variances.careful_half_width(seeds, prompts, 0.05)
    return Difference(value, value - half, value + half, seeds, prompts, 0, variances)


def test_the_bound_is_the_largest_probability_over_what_seeds_may_do() -> None:
    value, seeds, prompts = 0.12, 3, 300
    limit = stats.f.isf(0.05, 2, 598)
    extras = np.geomspace(1e-3, 1e4, 20_000)
    residual, of_prompts = 0.3 / 900, 0.2 / 300
    tails = 2 * stats.t.sf(value / np.sqrt(of_prompts + residual * (1 + extras)), 299)
    expected = (stats.f.cdf(limit / (1 + extras), 2, 598) * tails).max()
    assert agreeing_p(value, CrossedMean(QUIET, seeds, prompts)) == pytest.approx(expected, rel=2e-3)
    assert floor_p(value, CrossedMean(QUIET, seeds, prompts)) == pytest.approx(
        2 * stats.t.sf(value / math.sqrt(residual + of_prompts), 299)
    )


@given(
    st.floats(0.0, 2.0), st.floats(0.01, 2.0), st.integers(2, 6), st.sampled_from([2, 30, 300]), st.floats(0.001, 0.05)
)
def test_intervals_end_where_the_p_values_are_the_level(prompt, residual, seeds, prompts, level) -> None:
    variances = Variances(0.0, prompt, residual)
    half = agreeing_half_width(CrossedMean(variances, seeds, prompts), level)
    assert agreeing_p(half, CrossedMean(variances, seeds, prompts)) == pytest.approx(level, rel=1e-6)
    floor = floor_half_width(CrossedMean(variances, seeds, prompts), level)
    assert floor_p(floor, CrossedMean(variances, seeds, prompts)) == pytest.approx(level, rel=1e-6)


def test_seeds_agree_by_f_tests() -> None:
    assert method_agrees(stats.f.isf(0.0501, 2, 598), 3, 300)
    assert not method_agrees(stats.f.isf(0.0499, 2, 598), 3, 300)
    for level, expected in ((0.0101, {4}), (0.0099, set())):
        ratio = stats.f.isf(level, 2 + 4, 2 * 299 + 4 * 299)
        # 2 and 4 degrees of freedom: the ratio of both together weighs them so.
        smallest, second = (Variances((value - 1) * 0.3 / 300, 0.2, 0.3) for value in (ratio + 0.1, ratio - 0.05))
        assert smallest.seed_ratio(300) == pytest.approx(ratio + 0.1)
        # Of itself the second, with four degrees of freedom, does not pass at 5 %.
        assert agreeing_methods({4: CrossedMean(smallest, 3, 300), 7: CrossedMean(second, 5, 300)}) == expected
    assert agreeing_methods({0: CrossedMean(QUIET, 3, 300)}) == set()
    assert agreeing_methods({0: CrossedMean(QUIET, 3, 300), 1: CrossedMean(Variances(0.1, 0.0, 0.0), 3, 1)}) == set()


def test_a_method_whose_seeds_agree_is_told_where_students_quantile_of_two_degrees_is_too_wide() -> None:
    verdicts = holm([difference(0.12), *[difference(0.0)] * 4])
    careful = QUIET.careful_half_width(3, 300, 0.05 / 5)
    assert careful > 0.12
    assert verdicts[0].outcome == "better"
    assert verdicts[0].level == pytest.approx(0.05 * share_of_level(3)) == pytest.approx(0.03)
    half = agreeing_half_width(CrossedMean(QUIET, 3, 300), 0.03)
    assert (verdicts[0].low, verdicts[0].high) == pytest.approx((0.12 - half, 0.12 + half))
    assert verdicts[0].p < 0.05
    assert [verdict.outcome for verdict in verdicts[1:]] == ["not distinguishable"] * 4


def test_interval_p_and_outcome_agree_at_the_edge() -> None:
    half = half_width(CrossedMean(QUIET, 3, 300), 5, 0.05)
    assert half == max(
        agreeing_half_width(CrossedMean(QUIET, 3, 300), 0.03), floor_half_width(CrossedMean(QUIET, 3, 300), 0.01)
    )
    assert adjusted_p(half, CrossedMean(QUIET, 3, 300), 5) == pytest.approx(0.05)
    for value, decided in ((1.0001 * half, True), (0.9999 * half, False)):
        verdict = holm([difference(value), *[difference(0.0)] * 4])[0]
        assert (verdict.outcome == "better") is decided
        assert (verdict.low > 0) is decided
        assert (verdict.p < 0.05) is decided


def test_neither_a_single_method_nor_seeds_that_differ_have_the_bound() -> None:
    single = holm([difference(0.12)])[0]
    assert single.high - 0.12 == pytest.approx(QUIET.careful_half_width(3, 300, 0.05))
    apart = replace(QUIET, seed=0.003)  # Its seeds' mean square is 4 times the residual's.
    assert apart.seed_ratio(300) == pytest.approx(4.0)
    verdicts = holm([difference(0.12, apart), *[difference(0.0)] * 4])
    assert verdicts[0].outcome == "not distinguishable"
    assert verdicts[0].high - 0.12 == pytest.approx(apart.careful_half_width(3, 300, 0.01))
    # All methods' seeds together differ: 2.5 times, with ten degrees of freedom, though each alone passes.
    all_apart = replace(QUIET, seed=0.0015)
    verdicts = holm([difference(0.12, all_apart), *[difference(0.0, all_apart)] * 4])
    assert method_agrees(all_apart.seed_ratio(300), 3, 300)
    assert verdicts[0].high - 0.12 == pytest.approx(all_apart.careful_half_width(3, 300, 0.01))


def test_text_counts_seeds_by_the_bound_that_needs_fewer() -> None:
    verdict = holm([difference(0.09), *[difference(0.0)] * 4])[0]
    assert verdict.text == "not distinguishable: needs about 1 more seed"
    # With four seeds and the same variances it is decided.
    assert holm([difference(0.09, seeds=4), *[difference(0.0, seeds=4)] * 4])[0].outcome == "better"
    assert holm([difference(0.04), *[difference(0.0)] * 4])[0].text.startswith("not distinguishable: ")


def test_the_share_of_the_level() -> None:
    assert [share_of_level(seeds) for seeds in (2, 3, 4, 5)] == pytest.approx([0.6, 0.6, 0.4, 0.3])
