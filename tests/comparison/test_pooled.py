"""A verdict on a pooled metric: over seeds alone, and none where seeds change nothing."""

from __future__ import annotations

import math

import pytest

from penchant.comparison.results_cache import Cell, Comparison
from penchant.comparison.summary import summarise
from penchant.comparison.write import reading_note


def summary_of(ours: list[float], theirs: list[float], primary: str = "auc"):
    cells = [
        Cell(method, {}, 10, seed, "", {primary: value}, {}, {}, {}, {}, None)
        for method, values in (("dpo", theirs), ("ipo", ours))
        for seed, value in enumerate(values)
    ]
    return summarise(Comparison("t", "dpo", "m", "d", cells, {}, {}, primary, [], "", None))


def test_no_verdict_where_seeds_change_nothing():
    row = summary_of([0.701] * 3, [0.7] * 3).rows[1]
    assert row.verdict.difference.value == pytest.approx(0.001)
    assert row.verdict.outcome == "not distinguishable"
    assert row.verdict_text == "not distinguishable: seeds change nothing: no interval"
    document = row.to_json()
    assert [document["difference"][name] for name in ("low", "high", "p")] == [None] * 3
    assert [document["corrected"][name] for name in ("low", "high", "p")] == [None] * 3


def test_no_difference_is_told_as_such():
    assert summary_of([0.7] * 3, [0.7] * 3).rows[1].verdict_text == "not distinguishable: the two are equal"
    assert "needs at least 1 more seed" in summary_of([0.701], [0.7]).rows[1].verdict_text


def test_seeds_that_differ_give_a_t_interval():
    """Differences 0.1, 0.2, 0.3: a mean of 0.2 and a standard error of 0.1 / sqrt(3); t of 2 degrees is 4.303."""
    row = summary_of([0.6, 0.7, 0.8], [0.5] * 3).rows[1]
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert row.verdict.difference.high - row.verdict.difference.value == pytest.approx(half, rel=1e-6)
    assert (row.verdict.difference.n_prompts, row.verdict.outcome) == (0, "not distinguishable")
    assert summary_of([0.69, 0.70, 0.71], [0.5] * 3).rows[1].verdict_text == "better"


@pytest.mark.parametrize("primary", ["auc", "mean_log_prob_auc"])
def test_the_page_says_so(primary):
    assert "from the variance of seeds alone" in reading_note(summary_of([0.7], [0.6], primary))
    of_means = Comparison("t", "dpo", "m", "d", [], {}, {}, primary.replace("auc", "accuracy"), [], "", None)
    assert "from the variance of seeds, of prompts (once each" in reading_note(summarise(of_means))
