"""Differences that a design can find; how often they are found: tests/benchmarks/test_simulations.py."""

from __future__ import annotations

import pytest

from penchant.evaluation.variance_components import Variances, detectable_difference

EXPECTED = Variances(seed=0.0, prompt=1 / 6, residual=1 / 6)


def test_more_of_anything_finds_less() -> None:
    by_prompts = [detectable_difference(EXPECTED, 3, prompts, 5) for prompts in (50, 300, 2000)]
    assert by_prompts == sorted(by_prompts, reverse=True)
    assert by_prompts[1] == pytest.approx(0.108, abs=0.002)
    by_seeds = [detectable_difference(EXPECTED, seeds, 300, 5) for seeds in (2, 3, 5, 10)]
    assert by_seeds == sorted(by_seeds, reverse=True)
    # Prompts alone, at the level of five methods, with the power of 8 in 10: what no number of seeds gets under.
    assert by_seeds[-1] > (2.576 + 0.842) * (1 / 6 / 300) ** 0.5


def test_where_nothing_can_be_found() -> None:
    assert detectable_difference(EXPECTED, 1, 300, 5) is None
    assert detectable_difference(EXPECTED, 3, 1, 5) is None
    assert detectable_difference(EXPECTED, 2, 20, 12) is None
