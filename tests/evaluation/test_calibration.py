from __future__ import annotations

import math

import numpy as np
import pytest

from penchant.evaluation.calibration import calibrate


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_by_hand() -> None:
    # Four pairs in four bins: a tie (half right at 1/2), two wrong at sigmoid(1), one right at sigmoid(2).
    calibration = calibrate(np.array([4.0, -2.0, 0.0, -2.0]), np.array([0, 1, 0, 0]), 0.5, resamples=10, seed=0)
    assert [each.predicted for each in calibration.bins] == pytest.approx([0.5, sigmoid(1), sigmoid(1), sigmoid(2)])
    assert [each.observed.value for each in calibration.bins] == [0.5, 0, 0, 1]
    error = calibration.expected_calibration_error
    assert error.value == pytest.approx((2 * sigmoid(1) + 1 - sigmoid(2)) / 4)
    assert error.to_json() == {"value": error.value, "low": None, "high": None, "n": 4}
    assert calibration.to_json()["beta"] == 0.5
    assert "in 4 bins" in calibration.definition
    assert "0.5 x log-ratio" in calibration.definition


def test_bins_are_of_equal_count_and_ordered() -> None:
    margins = np.random.default_rng(0).normal(size=1003)
    calibration = calibrate(margins, np.arange(1003), 1.0, resamples=10, seed=0)
    assert [each.observed.n for each in calibration.bins] == [101] * 3 + [100] * 7
    predicted = [each.predicted for each in calibration.bins]
    assert predicted == sorted(predicted)


def test_equally_confident_pairs_share_their_outcome_across_bins() -> None:
    # 20 pairs of one confidence, 15 of them right: each bin of two has the common rate 3/4, in any order.
    margins = np.array([1.0] * 15 + [-1.0] * 5)
    for order in (np.arange(20), np.arange(20)[::-1]):
        calibration = calibrate(margins[order], np.arange(20)[order], 1.0, resamples=10, seed=0)
        assert [each.observed.value for each in calibration.bins] == [0.75] * 10
        assert calibration.expected_calibration_error.value == pytest.approx(0.75 - sigmoid(1))


def test_true_bradley_terry_margins_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    size = np.abs(generator.normal(scale=15, size=20_000))
    right = generator.random(20_000) < 1 / (1 + np.exp(-0.1 * size))
    margins = np.where(right, size, -size)
    true = calibrate(margins, np.arange(20_000), 0.1, resamples=20, seed=0).expected_calibration_error.value
    overconfident = calibrate(margins, np.arange(20_000), 0.4, resamples=20, seed=0).expected_calibration_error.value
    assert true < 0.015
    assert overconfident > 0.1


def test_huge_margins_are_certain_not_nan() -> None:
    calibration = calibrate(np.array([1e5, -1e5]), np.array([0, 1]), 1.0, resamples=10, seed=0)
    assert [each.predicted for each in calibration.bins] == [1, 1]
    assert calibration.expected_calibration_error.value == 0.5


def test_no_pairs() -> None:
    calibration = calibrate(np.array([]), np.array([], dtype=np.int64), 0.1, resamples=10, seed=0)
    error = {"value": None, "low": None, "high": None, "n": 0}
    assert calibration.to_json() == {"beta": 0.1, "expected_calibration_error": error, "bins": []}
