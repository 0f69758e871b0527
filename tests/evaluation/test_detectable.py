"""Differences that a design can find, beside the verdicts themselves."""

from __future__ import annotations

import numpy as np
import pytest

from penchant.evaluation.comparisons import holm, paired_difference
from penchant.evaluation.detectable import detectable_difference
from penchant.evaluation.variance_components import Variances

EXPECTED = Variances(seed=0.0, prompt=1 / 6, residual=1 / 6)


@pytest.mark.parametrize(("methods", "seeds", "prompts"), [(4, 3, 60), (1, 3, 60), (4, 5, 60)])
def test_it_is_found_in_about_80_of_100_comparisons(methods, seeds, prompts) -> None:
    difference = detectable_difference(EXPECTED, seeds, prompts, methods)
    assert difference is not None
    draw, found, runs = np.random.default_rng(0), 0, 300
    for _ in range(runs):
        # Each model has half of the variance of a difference.
        models = np.sqrt(1 / 12) * (
            draw.normal(size=(methods + 1, 1, prompts)) + draw.normal(size=(methods + 1, seeds, prompts))
        )
        models[-1] += difference
        verdicts = holm([paired_difference(model, models[0]) for model in models[1:]])
        found += verdicts[-1].outcome == "better"
    assert 0.72 <= found / runs <= 0.87


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
