"""A prompt counts once in intervals and verdicts, however many groups it has; values stay means over groups."""

from __future__ import annotations

import math

import numpy as np
import pytest

from penchant.comparison.pair_values import first_of_prompt
from penchant.comparison.results_cache import Cell, Comparison
from penchant.comparison.summary import summarise
from penchant.data.groups import PreferenceGroup
from penchant.evaluation.comparisons import paired_difference
from penchant.evaluation.seed_means import by_prompt

DRAW = np.random.default_rng(3)
PROMPTS = np.array([-0.9, -0.6, 0.1, 0.4, 0.6, 1.1, 1.5, 1.8])
"""What ours has more for each prompt: of mean 0.5 and no more than the prompts' own spread explains."""
OURS, THEIRS = PROMPTS + DRAW.normal(0, 0.2, (3, 8)), DRAW.normal(0, 0.2, (3, 8))


def compared(ours: np.ndarray, theirs: np.ndarray, prompts: list[str]):
    """The row of a method against its baseline, from [S, G] values of a metric."""
    groups = [PreferenceGroup(prompt, ("a", "b"), id=str(i)) for i, prompt in enumerate(prompts)]
    cells = [
        Cell(
            method=method,
            settings={},
            size=10,
            seed=seed,
            folder="",
            metrics={"margin": float(np.nanmean(row))},
            values={"margin": {f"group {i}": value for i, value in enumerate(row.tolist()) if not math.isnan(value)}},
            sources={},
            curves={},
            cost={},
            failed=None,
        )
        for method, table in (("dpo", theirs), ("ipo", ours))
        for seed, row in enumerate(table)
    ]
    comparison = Comparison("t", "dpo", "m", "d", cells, first_of_prompt(groups), {}, "margin", [], "", None)
    return summarise(comparison).rows[1]


def test_columns_by_hand():
    """Prompt a has one group, b three: means 4 and 6, weights 1 and 3 of a mean of 2, all groups' mean 5.5."""
    table = np.array([[4.0, 5.0, 6.0, 7.0]])
    (columns,) = by_prompt([table], ["a", "b", "b", "b"])
    assert columns.tolist() == [[5.5 + 0.5 * (4 - 5.5), 5.5 + 1.5 * (6 - 5.5)]]
    assert columns.mean() == table.mean()
    (equal,) = by_prompt([table], ["a", "b", "a", "b"])
    assert equal.tolist() == [[5.0, 6.0]]


def test_a_group_counts_where_all_have_it_and_a_prompt_where_it_has_one():
    ours = np.array([[1.0, math.nan, 3.0], [2.0, 5.0, 4.0]])
    theirs = np.array([[0.0, 1.0, math.nan], [0.0, 1.0, 1.0]])
    columns = by_prompt([ours, theirs], ["a", "a", "b"])
    assert columns[0][:, 0].tolist() == [1.0, 2.0]
    assert np.isnan(columns[0][:, 1]).all()
    difference = paired_difference(*columns)
    assert (difference.n_prompts, difference.left_out, difference.value) == (1, 1, 1.5)
    empty_columns = by_prompt([ours[:1, 1:], theirs[:1, 1:]], ["a", "b"])
    assert np.isnan(empty_columns[0]).all()


@pytest.mark.parametrize("times", [2, 6])
def test_rows_told_again_are_no_further_prompts(times):
    prompts = [f"p{i}" for i in range(8)]
    row = compared(OURS, THEIRS, prompts)
    repeated_row = compared(np.tile(OURS, times), np.tile(THEIRS, times), prompts * times)
    assert repeated_row.verdict.difference.n_prompts == row.verdict.difference.n_prompts == 8
    assert repeated_row.verdict_text == row.verdict_text
    for name in ("value", "low", "high", "p"):
        expected = pytest.approx(getattr(row.verdict.difference, name))
        assert getattr(repeated_row.verdict.difference, name) == expected, name
    as_prompts = compared(np.tile(OURS, times), np.tile(THEIRS, times), [f"p{i}" for i in range(8 * times)])
    assert as_prompts.verdict.difference.high - as_prompts.verdict.difference.low < 1.1
    assert row.verdict.difference.high - row.verdict.difference.low > 1.5


def test_the_intervals_centre_is_the_difference_of_the_tables_values():
    prompts = ["a", "a", "a", "b", "c", "d", "d", "e"]
    row = compared(OURS, THEIRS, prompts)
    difference = row.verdict.difference
    assert difference.n_prompts == 5
    assert difference.value == pytest.approx(OURS.mean() - THEIRS.mean())
    assert row.metrics["margin"].value == pytest.approx(OURS.mean())
    assert (difference.low + difference.high) / 2 == pytest.approx(difference.value)


def test_intervals_cover_where_prompts_have_unequally_many_groups():
    """Nominally 95 %; with every group a prompt of its own about 79 %."""
    draw = np.random.default_rng(0)
    covered, naive = 0, 0
    for _ in range(400):
        prompts = np.repeat(np.arange(50), draw.choice([1, 2, 6], 50))
        effects = (
            draw.normal(0, 1, 50)[prompts] + draw.normal(0, 0.5, len(prompts)) + draw.normal(0, 0.7, (3, len(prompts)))
        )
        difference = paired_difference(*by_prompt([effects, np.zeros_like(effects)], prompts.tolist()))
        covered += difference.low <= 0 <= difference.high
        plain = paired_difference(effects, np.zeros_like(effects))
        naive += plain.low <= 0 <= plain.high
    assert covered / 400 > 0.92
    assert naive / 400 < 0.85
