from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from penchant.evaluation.comparisons import (
    Difference,
    Variances,
    across_seeds,
    holm,
    paired_difference,
    paired_seeds,
    prompts_needed,
    seeds_needed,
)
from penchant.evaluation.statistics import Floats
from penchant.intervals import critical_value

SIMULATIONS = 2000


def crossed(shares: float, shape: tuple[int, int, int], seed: int, residual: float = 1.0) -> Floats:
    """[simulations, S, N] differences of mean 0; seeds contribute `shares` times what the rest does."""
    draw = np.random.default_rng(seed)
    simulations, seeds, prompts = shape
    prompt_variance = 1 / prompts + residual**2 / (seeds * prompts)
    of_seeds = math.sqrt(shares * prompt_variance * seeds) * draw.normal(size=(simulations, seeds, 1))
    of_prompts = draw.normal(size=(simulations, 1, prompts))
    return of_seeds + of_prompts + residual * draw.normal(size=shape)


def coverage(values: Floats) -> float:
    """Share of simulations whose 95 % interval holds the true mean, 0."""
    zero = np.zeros(values.shape[1:])
    differences = [paired_difference(item, zero) for item in values]
    return sum(item.low <= 0 <= item.high for item in differences) / len(differences)


def difference_of(value: float, variances: Variances, seeds: int = 3, prompts: int = 100) -> Difference:
    """A difference with given variance components."""
    bare_difference = Difference(value, math.nan, math.nan, seeds, prompts, 0, variances)
    return Difference(value, *bare_difference.interval(0.05), seeds, prompts, 0, variances)


def with_p(p: float, value: float = 1.0) -> Difference:
    """A difference of 3 seeds and no prompts (2 degrees of freedom) with a given p-value."""
    error = abs(value) / critical_value(p, 2)
    variances = Variances(3 * error**2, 0.0, 0.0)
    return Difference(value, *Difference(value, 0, 0, 3, 0, 0, variances).interval(0.05), 3, 0, 0, variances)


def test_across_seeds_by_hand() -> None:
    # Mean 2, variance 1, standard error 1/sqrt(3), t(2 degrees) = 4.302653.
    estimate = across_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.high - estimate.value == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert estimate.value - estimate.low == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)


def test_across_one_seed_or_none() -> None:
    single, empty = across_seeds([0.7]), across_seeds([])
    assert (single.value, single.n, math.isnan(single.low), math.isnan(single.high)) == (0.7, 1, True, True)
    assert (math.isnan(empty.value), empty.n) == (True, 0)


def test_variance_components_by_hand() -> None:
    # Row means 2, 4; column means 1, 3, 5; mean 3; residuals are -1, 0, 1 and 1, 0, -1:
    # residual mean square 4 / 2 = 2, seed 2 - 2/3, prompt 4 - 2/2.
    values = np.array([[-1.0, 2.0, 5.0], [3.0, 4.0, 5.0]])
    difference = paired_difference(values + 10, np.full((2, 3), 10.0))
    assert (difference.value, difference.n_seeds, difference.n_prompts, difference.left_out) == (3.0, 2, 3, 0)
    assert difference.variances is not None
    assert difference.variances.seed == pytest.approx(4 / 3)
    assert difference.variances.prompt == pytest.approx(3.0)
    assert difference.variances.residual == pytest.approx(2.0)
    # Seeds' square 3 x 4/3 + 2 = 6, variance 6 + 2 x 3 = 12, over 6 cells; the seeds' share is
    # (6 - 0.6 x 4 / 6) / 12 = 7/15, to the power of 8/15.
    error, distribution = difference.variances.error(2, 3)
    assert error == pytest.approx(math.sqrt(2))
    share = (7 / 15) ** (8 / 15)
    assert distribution.share == pytest.approx(share)
    assert (distribution.few, distribution.many) == (1, 2)
    # P(|T| > t) is 1 - 2 atan(t) / pi with one degree of freedom and 1 - t / sqrt(2 + t²) with two.
    t = 3 / math.sqrt(2)
    by_hand = share * (1 - 2 * math.atan(t) / math.pi) + (1 - share) * (1 - t / math.sqrt(2 + t * t))
    assert distribution.two_sided_p(t) == pytest.approx(by_hand, rel=1e-9)
    half = difference.high - difference.value
    assert distribution.two_sided_p(half / math.sqrt(2)) == pytest.approx(0.05, rel=1e-9)
    assert difference.low == pytest.approx(2 * difference.value - difference.high)


def test_a_verdict_stands_on_each_part_with_its_own_quantile() -> None:
    # Of the table above: v_seed 6/6 with 1 degree of freedom, v_prompt 3/3 with 2. At level 0.1 the quantiles are
    # tan(0.45 pi) = 6.3138 and 0.9 sqrt(2 / (1 - 0.81)) = 2.9200.
    variances = Variances(4 / 3, 3.0, 2.0)
    by_hand = math.sqrt(math.tan(0.45 * math.pi) ** 2 + 0.81 * 2 / 0.19)
    assert variances.careful_half_width(2, 3, 0.1) == pytest.approx(by_hand, rel=1e-9)
    assert variances.careful_p(by_hand, 2, 3) == pytest.approx(0.1, rel=1e-9)
    assert variances.careful_p(0.0, 2, 3) == 1.0


@given(
    st.tuples(*[st.floats(-0.5, 10)] * 2, st.floats(0.01, 10)),
    st.floats(0.01, 50),
    st.integers(2, 6),
    st.sampled_from([1, 2, 90]),
)
def test_a_careful_interval_ends_at_zero_at_its_p(parts, value, seeds, prompts) -> None:
    variances = Variances(*parts)
    p = variances.careful_p(value, seeds, prompts)
    assert 0 <= p <= 1
    if p > 1e-12:
        assert variances.careful_half_width(seeds, prompts, p) == pytest.approx(value, rel=1e-6)
        error, distribution = variances.error(seeds, prompts)
        assert (
            variances.careful_half_width(seeds, prompts, 0.05) >= 0.999999 * distribution.critical_value(0.05) * error
        )


def test_components_below_zero_do_not_narrow_the_interval() -> None:
    # Seeds agree more than chance: the seeds' square is 100 x -0.002 + 1 = 0.8, and the residual's 1 stands for it.
    error, distribution = Variances(-0.002, -0.1, 1.0).error(3, 100)
    assert error == pytest.approx(math.sqrt(1 / 300))
    assert distribution.share == pytest.approx(0.2**0.8)


def test_prompts_that_one_did_not_measure_are_left_out_and_counted() -> None:
    ours = np.array([[1.0, 5.0, 2.0, 3.0], [2.0, 5.0, 2.0, np.nan]])
    baseline = np.array([[0.0, np.nan, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    difference = paired_difference(ours, baseline)
    assert (difference.value, difference.n_prompts, difference.left_out) == (1.5, 2, 2)
    assert difference == replace(paired_difference(ours[:, [0, 2]], baseline[:, [0, 2]]), left_out=2)


def test_what_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\) cannot be paired with values of shape \(1, 3\)"):
        paired_difference(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_seeds([1.0, 2.0], [1.0])


@pytest.mark.parametrize("shape", [(1, 5), (3, 1)])
def test_a_single_seed_or_prompt_has_no_interval(shape: tuple[int, int]) -> None:
    difference = paired_difference(np.full(shape, 2.0), np.zeros(shape))
    assert difference.value == 2.0
    assert all(
        math.isnan(number) for number in (difference.low, difference.high, difference.p, *difference.interval(0.01))
    )
    assert difference.variances is None
    assert seeds_needed(difference) is None


def test_no_common_prompt() -> None:
    difference = paired_difference([[1.0, np.nan]] * 2, [[np.nan, 1.0]] * 2)
    assert (math.isnan(difference.value), difference.n_prompts, difference.left_out) == (True, 0, 2)
    assert holm([difference])[0].text == "not distinguishable: nothing was measured by both"


def test_equal_everywhere() -> None:
    difference = paired_difference(np.ones((3, 4)), np.ones((3, 4)))
    assert (difference.value, difference.low, difference.high, difference.p) == (0.0, 0.0, 0.0, 1.0)
    assert holm([difference])[0].text == "not distinguishable: the two are equal"
    shifted = paired_difference(np.full((3, 4), 2.0), np.ones((3, 4)))
    assert (shifted.value, shifted.low, shifted.high, shifted.p) == (1.0, 1.0, 1.0, 0.0)
    assert holm([shifted])[0].outcome == "better"


def test_paired_seeds_is_the_paired_t_test() -> None:
    # Differences 1, 2, 3: t = 2 sqrt(3) with 2 degrees, p = 1 - t / sqrt(2 + t²).
    difference = paired_seeds([1.5, 3.0, 4.5], [0.5, 1.0, 1.5])
    t = 2 * math.sqrt(3)
    assert (difference.value, difference.n_seeds, difference.n_prompts) == (2.0, 3, 0)
    assert difference.p == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
    assert difference.high == pytest.approx(2 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert prompts_needed(difference) is None


@settings(max_examples=50)
@given(arrays(np.float64, (3, 5), elements=st.floats(-5, 5)), st.floats(-3, 3))
def test_difference_is_odd_and_shifts(values: Floats, shift: float) -> None:
    zero = np.zeros_like(values)
    difference, mirrored = paired_difference(values, zero), paired_difference(zero, values)
    assert (difference.value, difference.low, difference.high) == (-mirrored.value, -mirrored.high, -mirrored.low)
    shifted = paired_difference(values + shift, zero)
    assert shifted.value == pytest.approx(difference.value + shift, abs=1e-9)
    assert shifted.high - shifted.low == pytest.approx(difference.high - difference.low, abs=1e-6)


@pytest.mark.slow_but("seeds agree-50-3", "seeds dominate-50-10")
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("prompts", [50, 200])
@pytest.mark.parametrize("shares", [0.0, 0.5, 20.0], ids=["seeds agree", "seeds differ a little", "seeds dominate"])
def test_intervals_cover_what_they_promise(seeds: int, prompts: int, shares: float) -> None:
    covered = coverage(crossed(shares, (SIMULATIONS, seeds, prompts), seed=seeds * prompts))
    assert 0.93 <= covered <= 0.97


@pytest.mark.slow
def test_where_the_residual_dominates_intervals_are_wide_rather_than_narrow() -> None:
    assert 0.965 <= coverage(crossed(0.0, (SIMULATIONS, 3, 50), seed=3, residual=3.0)) <= 0.985
    assert 0.925 <= coverage(crossed(5.0, (SIMULATIONS, 3, 50), seed=4, residual=3.0)) <= 0.97


def test_intervals_of_yes_or_no_values_cover() -> None:
    # Accuracies of two models that agree on most prompts: differences are -1, 0, 1.
    draw = np.random.default_rng(5)
    latent = crossed(0.5, (SIMULATIONS, 5, 100), seed=6)
    threshold = draw.uniform(1.0, 2.0, size=(SIMULATIONS, 1, 100))
    values = (latent > threshold).astype(float) - (latent < -threshold)
    assert 0.93 <= coverage(values) <= 0.975


NULLS = [  # methods, seeds, prompts, shares, residual, yes or no, and the least rate a test with any power has
    (5, 5, 100, 0.5, 1.0, False, 0.002),
    (5, 3, 100, 20.0, 1.0, False, 0.01),
    (5, 3, 100, 2.0, 3.0, False, 0.0),
    (12, 3, 50, 5.0, 3.0, False, 0.0),
    (12, 3, 100, 2.0, 1.0, False, 0.0),
    (12, 3, 100, 20.0, 1.0, False, 0.005),
    (12, 5, 100, 2.0, 3.0, False, 0.002),
    (12, 3, 200, 5.0, 3.0, True, 0.0),
    (12, 3, 200, 2.0, 2.0, True, 0.0),
    (1, 3, 100, 20.0, 1.0, False, 0.03),
]


def candidates_for_a_verdict(differences: Floats, level: float) -> list[int]:
    """Which of [M, S, N] differences could be told at this level: by the narrowest interval there is.

    All of the error with the quantile of the many degrees of freedom; the careful interval is never narrower.
    """
    _, seeds, prompts = differences.shape
    rows, columns, mean = differences.mean(2), differences.mean(1), differences.mean((1, 2))
    residuals = differences - rows[:, :, None] - columns[:, None, :] + mean[:, None, None]
    residual = (residuals**2).sum((1, 2)) / ((seeds - 1) * (prompts - 1))
    of_seeds = np.maximum(prompts * rows.var(1, ddof=1), residual)
    of_prompts = np.maximum(seeds * columns.var(1, ddof=1) - residual, 0)
    error = np.sqrt((of_seeds + of_prompts) / (seeds * prompts))
    return np.flatnonzero(np.abs(mean) > critical_value(level, prompts - 1) * error).tolist()


@pytest.mark.slow_but("5-5-100", "1-3-100")
@pytest.mark.parametrize(("methods", "seeds", "prompts", "shares", "residual", "yes_or_no", "min_share"), NULLS)
def test_no_method_is_better_by_chance(methods, seeds, prompts, shares, residual, yes_or_no, min_share) -> None:
    """Methods without an effect against one baseline, whose own noise they share: 5 % of comparisons at most.

    By the intervals alone, without the careful part, 8 to 20 % of comparisons have one in six of these settings. What
    the bound for agreeing seeds adds is counted in tests/benchmarks/test_simulations.py.
    """
    wrong, level = 0, 0.05 / methods
    for run in range(SIMULATIONS):
        runs = crossed(shares, (methods + 1, seeds, prompts), seed=run, residual=residual)
        baseline, *methods_values = (runs > 0).astype(float) if yes_or_no else runs
        # Without an effect, the first step of Holm's procedure decides whether there is any false verdict.
        candidates = [
            paired_difference(methods_values[i], baseline)
            for i in candidates_for_a_verdict(np.stack(methods_values) - baseline, level)
        ]
        if any(low > 0 or high < 0 for low, high in (candidate.interval(level) for candidate in candidates)):
            verdicts = holm([paired_difference(ours, baseline) for ours in methods_values])
            assert any(verdict.outcome != "not distinguishable" for verdict in verdicts)
            wrong += 1
    # The upper end: two standard errors of the simulation above 5 %.
    assert min_share <= wrong / SIMULATIONS <= 0.06


def test_holm_steps_down_and_stops() -> None:
    # Against .05/4, .05/3, .05/2, .05: .012 and .016 pass, .03 fails, and so does .04 though it is below .05.
    verdicts = holm([with_p(0.03), with_p(0.012), with_p(0.04), with_p(0.016, value=-1.0)])
    assert [v.outcome for v in verdicts] == ["not distinguishable", "better", "not distinguishable", "worse"]
    assert [v.level for v in verdicts] == pytest.approx([0.025, 0.0125, 0.025, 0.05 / 3])
    assert [v.p for v in verdicts] == pytest.approx([0.06, 0.048, 0.06, 0.048])


@given(st.lists(st.tuples(st.floats(1e-4, 0.9), st.sampled_from([-1.0, 1.0])), min_size=1, max_size=8))
def test_intervals_and_outcomes_agree(given_ps: list[tuple[float, float]]) -> None:
    verdicts = holm([with_p(p, value) for p, value in given_ps])
    for verdict, (p, _) in zip(verdicts, given_ps, strict=True):
        decided = verdict.outcome != "not distinguishable"
        assert decided == (verdict.low > 0 or verdict.high < 0)
        assert decided == (verdict.p < 0.05) or verdict.p == pytest.approx(0.05, rel=1e-6)
        assert p * 0.999 <= verdict.p
        # The corrected interval is never narrower than that of the difference alone.
        assert verdict.low <= verdict.difference.low + 1e-9


def test_holm_does_not_count_what_has_no_p() -> None:
    single = paired_difference(np.ones((1, 3)), np.zeros((1, 3)))
    without_p, with_verdict = holm([single, with_p(0.04)])
    assert without_p.text == "not distinguishable: one seed does not show how seeds differ; needs at least 1 more seed"
    assert (with_verdict.outcome, with_verdict.level) == ("better", 0.05)
    prompt = holm([paired_difference(np.ones((3, 1)), np.zeros((3, 1)))])[0]
    assert prompt.text == "not distinguishable: one prompt does not show how prompts differ; needs more prompts"
    assert holm([]) == []


def test_seeds_needed_is_the_least_number_that_is_enough() -> None:
    # Standard error 1 / sqrt(S) with S - 1 degrees of freedom: 0.9 is outside once t / sqrt(S) is below it.
    difference = difference_of(0.9, Variances(1.0, 0.0, 0.0), seeds=3, prompts=1)
    enough = [s for s in range(2, 40) if critical_value(0.05, s - 1) / math.sqrt(s) < 0.9]
    assert seeds_needed(difference) == enough[0] - 3
    stricter = [s for s in range(2, 40) if critical_value(0.01, s - 1) / math.sqrt(s) < 0.9]
    assert seeds_needed(difference, 0.01) == stricter[0] - 3
    assert seeds_needed(difference_of(9.0, Variances(1.0, 0.0, 0.0), seeds=3, prompts=1)) == 0


def test_text_says_what_it_takes() -> None:
    assert holm([with_p(0.06)])[0].text == "not distinguishable: needs about 1 more seed"
    assert holm([with_p(0.2)])[0].text == "not distinguishable: needs about 3 more seeds"


def test_prompts_may_be_what_is_missing() -> None:
    # With any number of seeds the standard error is at least sqrt(1/100) = 0.1, and t is 1.98: 0.15 cannot be seen.
    difference = difference_of(0.15, Variances(0.0, 1.0, 0.1))
    assert seeds_needed(difference) is None
    prompts = prompts_needed(difference)
    assert prompts is not None
    assert difference.p_with(prompts=prompts) < 0.05 <= difference.p_with(prompts=prompts - 1)
    # (4.30² x 0.1 / 3 + 1.97²) / N < 0.15² needs N = 200.
    assert 98 <= prompts <= 104


def test_text_where_more_seeds_alone_will_not_do() -> None:
    few = paired_difference(*_prompts_differ(0.0))
    verdict = holm([few])[0]
    prompts = prompts_needed(few)
    assert prompts is not None
    assert verdict.text == (f"not distinguishable: more seeds alone will not do; needs about {prompts:,} more prompts")
    both = paired_difference(*_prompts_differ(1.0))
    assert holm([both])[0].text == (
        "not distinguishable: more seeds alone will not do, nor more prompts alone; needs more of both"
    )


def _prompts_differ(of_seeds: float) -> tuple[Floats, Floats]:
    """3 seeds and 20 prompts that differ by about 1, mean 0.2; seeds differ by `of_seeds`."""
    prompts = np.linspace(-1.5, 1.9, 20)
    draw = np.random.default_rng(0)
    seeds = of_seeds * np.array([[-1.0], [0.0], [1.0]])
    return prompts + seeds + 0.05 * draw.normal(size=(3, 20)), np.zeros((3, 20))
