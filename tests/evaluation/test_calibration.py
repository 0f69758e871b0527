from __future__ import annotations

import math

import numpy as np
import pytest

from penchant.evaluation.preference_pairs import calibrate


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    # Four pairs in four bins: a tie (half right at 1/2), two wrong at sigmoid(1), one right at sigmoid(2).
    calibration = calibrate(np.array([4.0, -2.0, 0.0, -2.0]), np.array([0, 1, 0, 0]), 0.5, seed=0)
    assert [calibration_bin.predicted for calibration_bin in calibration.bins] == pytest.approx(
        [0.5, sigmoid(1), sigmoid(1), sigmoid(2)]
    )
    assert [calibration_bin.observed.value for calibration_bin in calibration.bins] == [0.5, 0, 0, 1]
    error = calibration.expected_calibration_error
    assert error.value == pytest.approx((2 * sigmoid(1) + 1 - sigmoid(2)) / 4)
    assert error.to_json() == {"value": error.value, "low": None, "high": None, "n": 4}
    assert calibration.to_json()["beta"] == 0.5
    assert "in 4 bins" in calibration.definition
    assert "0.5 x log-ratio" in calibration.definition


def test_bins_are_of_equal_count_and_ordered() -> None:
    margins = np.random.default_rng(0).normal(size=1003)
    calibration = calibrate(margins, np.arange(1003), 1.0, seed=0)
    assert [calibration_bin.observed.n for calibration_bin in calibration.bins] == [101] * 3 + [100] * 7
    predicted = [calibration_bin.predicted for calibration_bin in calibration.bins]
    assert predicted == sorted(predicted)


def test_equally_confident_pairs_share_their_outcome_across_bins() -> None:
    # 20 pairs of one confidence, 15 of them right: each bin of two has the common rate 3/4, in any order.
    margins = np.array([1.0] * 15 + [-1.0] * 5)
    for order in (np.arange(20), np.arange(20)[::-1]):
        calibration = calibrate(margins[order], np.arange(20)[order], 1.0, seed=0)
        assert [calibration_bin.observed.value for calibration_bin in calibration.bins] == [0.75] * 10
        assert calibration.expected_calibration_error.value == pytest.approx(0.75 - sigmoid(1))


def test_true_bradley_terry_margins_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    size = np.abs(generator.normal(scale=15, size=20_000))
    right = generator.random(20_000) < 1 / (1 + np.exp(-0.1 * size))
    margins = np.where(right, size, -size)
    true = calibrate(margins, np.arange(20_000), 0.1, seed=0).expected_calibration_error.value
    overconfident = calibrate(margins, np.arange(20_000), 0.4, seed=0).expected_calibration_error.value
    assert true < 0.015
    assert overconfident > 0.1


def test_huge_margins_are_certain_not_nan() -> None:
    calibration = calibrate(np.array([1e5, -1e5]), np.array([0, 1]), 1.0, seed=0)
    assert [calibration_bin.predicted for calibration_bin in calibration.bins] == [1, 1]
    assert calibration.expected_calibration_error.value == 0.5


def test_no_pairs() -> None:
    calibration = calibrate(np.array([]), np.array([], dtype=np.int64), 0.1, seed=0)
    error = {"value": None, "low": None, "high": None, "n": 0}
    expected = {"beta": 0.1, "expected_calibration_error": error, "calibrated_error": None, "bins": []}
    assert calibration.to_json() == expected


def test_the_error_of_few_pairs_with_true_probabilities_by_all_their_outcomes() -> None:
    # Three pairs of other confidence in bins of their own: |p - 0| with probability 1 - p, |p - 1| with p.
    margins = np.array([0.4, -1.0, 2.5])
    calibration = calibrate(margins, np.arange(3), 1.0, seed=0)
    probabilities = [sigmoid(abs(margin)) for margin in margins]
    expected = sum(2 * p * (1 - p) for p in probabilities) / 3
    assert calibration.calibrated_error == pytest.approx(expected, rel=0.1)
    assert calibration.to_json()["calibrated_error"] == calibration.calibrated_error


@pytest.mark.slow
def test_the_error_of_calibrated_rewards_is_what_chance_makes_of_it() -> None:
    # 300 pairs, 30 in a bin: sqrt(2 p (1 - p) / (30 pi)) is .073 at p = 1/2; the same data over-confident is far above.
    generator = np.random.default_rng(1)
    errors, chances, overconfident = [], [], []
    for _ in range(20):
        size = np.abs(generator.normal(scale=5, size=300))
        margins = np.where(generator.random(300) < 1 / (1 + np.exp(-0.1 * size)), size, -size)
        calibration = calibrate(margins, np.arange(300), 0.1, seed=0)
        errors.append(calibration.expected_calibration_error.value)
        chances.append(calibration.calibrated_error)
        wrong = calibrate(margins, np.arange(300), 0.5, seed=0)
        overconfident.append(wrong.expected_calibration_error.value - wrong.calibrated_error)
    assert 0.06 < np.mean(chances) < 0.08
    assert np.mean(errors) == pytest.approx(np.mean(chances), rel=0.15)
    assert np.mean(overconfident) > 0.15


def test_ties_are_half_right_by_definition() -> None:
    calibration = calibrate(np.zeros(7), np.arange(7), 1.0, seed=0)
    assert calibration.expected_calibration_error.value == 0
    assert calibration.calibrated_error == 0


def test_a_bin_of_equally_confident_pairs_is_not_certain() -> None:
    margins = np.array([1.0] * 180 + [-1.0] * 20)
    for calibration_bin in calibrate(margins, np.arange(200), 1.0, seed=0).bins:
        assert calibration_bin.observed.value == pytest.approx(0.9)
        assert calibration_bin.observed.high - calibration_bin.observed.low > 0.1
