"""The summary of a comparison: means over seeds and prompts, and differences from the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penchant.comparison.config import START
from penchant.comparison.pair_values import is_pooled
from penchant.comparison.results_cache import Cell, Comparison
from penchant.evaluation.comparisons import Difference, Verdict, across_seeds, holm, paired_difference, paired_seeds
from penchant.evaluation.seed_means import by_prompt, mean_over_seeds, unbounded_mean_over_seeds
from penchant.evaluation.statistics import Estimate, Floats

MAIN = (
    "accuracy",
    "auc",
    "margin",
    "top1",
    "ndcg",
    "kendall_tau",
    "log_prob_accuracy",
    "mean_log_prob_accuracy",
    "mean_log_prob_auc",
    "mean_log_prob_margin",
    "mean_log_prob_top1",
    "mean_log_prob_ndcg",
    "mean_log_prob_kendall_tau",
    "reward",
    "kl",
    "words",
    "win_rate",
)
"""The metrics of tables, in this order, where they were measured."""

_UNBOUNDED = ("kl", "words")
"""Metrics that are no shares, even where all values lie between 0 and 1; nor are margins and Kendall's tau."""


@dataclass(frozen=True)
class Row:
    """One variant at one size.

    Attributes:
        variant: label and varying hyper-parameters.
        cells: seed -> measured cell.
        failed: seed -> reason.
        metrics: mean over seeds and prompts with a 95 % interval for new seeds and prompts; n is the number of seeds.
        verdict: verdict on the primary metric against the baseline; None for the baseline itself.
    """

    variant: str
    method: str
    settings: dict[str, Any]
    size: int
    cells: dict[int, Cell]
    failed: dict[int, str]
    metrics: dict[str, Estimate]
    verdict: Verdict | None

    @property
    def verdict_text(self) -> str:
        """The verdict as text."""
        if self.verdict is None:
            return "baseline"
        difference = self.verdict.difference
        is_constant = difference.n_seeds > 1 and difference.n_prompts == 0 and difference.variances is None
        if is_constant and not math.isnan(difference.value):
            reason = "the two are equal" if difference.value == 0 else "seeds change nothing: no interval"
            return f"{self.verdict.outcome}: {reason}"
        return self.verdict.text

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "variant": self.variant,
            "method": self.method,
            "settings": self.settings,
            "size": self.size,
            "seeds": sorted(self.cells),
            "failed": {str(seed): reason for seed, reason in self.failed.items()},
            "metrics": {name: estimate.to_json() for name, estimate in self.metrics.items()},
            "cost": cost(self.cells.values()),
            "verdict": self.verdict_text,
        }
        if self.verdict is not None:
            difference = self.verdict.difference
            document["difference"] = {
                "value": _plain(difference.value),
                "low": _plain(difference.low),
                "high": _plain(difference.high),
                "p": _plain(difference.p),
                "n": difference.n_prompts,
                "seeds": difference.n_seeds,
                "prompts_left_out": difference.left_out,
            }
            document["corrected"] = {
                "low": _plain(self.verdict.low),
                "high": _plain(self.verdict.high),
                "level": self.verdict.level,
                "p": _plain(self.verdict.p),
                "outcome": self.verdict.outcome,
            }
        return document


@dataclass(frozen=True)
class Summary:
    """All rows of a comparison."""

    comparison: Comparison
    rows: tuple[Row, ...]

    @property
    def sizes(self) -> list[int]:
        return sorted({row.size for row in self.rows})

    @property
    def table_metrics(self) -> list[str]:
        """The metrics of the tables: the primary one first, then the others that were measured."""
        names = [name for name in MAIN if any(name in row.metrics for row in self.rows)]
        primary = self.comparison.primary
        return [primary, *(name for name in names if name != primary)]

    def to_json(self) -> dict[str, Any]:
        """The JSON document: metrics as ``{"value", "low", "high", "n"}``, n is the number of seeds."""
        comparison = self.comparison
        return {
            "title": comparison.title,
            "model": comparison.model,
            "data": comparison.data,
            "baseline": comparison.baseline,
            "primary": comparison.primary,
            "variants": [row.to_json() for row in self.rows],
            "definitions": comparison.definitions,
            "notices": list(comparison.notices),
            "judge": comparison.judge,
            "cells": [
                {
                    "method": cell.method,
                    "settings": cell.settings,
                    "size": cell.size,
                    "seed": cell.seed,
                    "folder": cell.folder,
                    "metrics": {name: _plain(value) for name, value in cell.metrics.items()},
                    "failed": cell.failed,
                }
                for cell in comparison.cells
            ],
        }


def summarise(comparison: Comparison) -> Summary:
    """Rows in the comparison's order, with one baseline and one Holm correction for each size."""
    sizes = sorted({cell.size for cell in comparison.cells})
    return Summary(comparison, tuple(row for size in sizes for row in _rows(comparison, size)))


def _rows(comparison: Comparison, size: int) -> list[Row]:
    cells: dict[str, list[Cell]] = {}
    for cell in comparison.cells:
        if cell.size == size:
            cells.setdefault(name_of(cell), []).append(cell)
    baseline = next((name for name, row_cells in cells.items() if row_cells[0].method == comparison.baseline), None)
    compared_names = [name for name in cells if name != baseline and (name != START or comparison.baseline == START)]
    verdicts: dict[str, Verdict] = {}
    if baseline is not None:
        # The starting model is no method: it does not count in the correction.
        compared = [name for name in compared_names if name != START]
        differences = [difference(cells[name], cells[baseline], comparison) for name in compared]
        verdicts = dict(zip(compared, holm(differences), strict=True))
        if baseline != START and START in cells:
            verdicts[START] = holm([difference(cells[START], cells[baseline], comparison)])[0]
    return [_row(name, row_cells, verdicts.get(name), comparison.prompts) for name, row_cells in cells.items()]


def _row(name: str, cells: Sequence[Cell], verdict: Verdict | None, prompts: Mapping[str, str]) -> Row:
    measured_cells = {cell.seed: cell for cell in cells if cell.failed is None}
    names = dict.fromkeys(metric for cell in measured_cells.values() for metric in cell.metrics)
    metrics = {metric: _estimate(metric, list(measured_cells.values()), prompts) for metric in names}
    first_cell = cells[0]
    failed = {cell.seed: cell.failed for cell in cells if cell.failed is not None}
    return Row(name, first_cell.method, first_cell.settings, first_cell.size, measured_cells, failed, metrics, verdict)


def _estimate(metric: str, cells: Sequence[Cell], prompts: Mapping[str, str]) -> Estimate:
    """The mean of the cells' values, with an interval over seeds and prompts; over seeds alone for a pooled metric."""
    cells = [cell for cell in cells if metric in cell.metrics]
    over_seeds = across_seeds([cell.metrics[metric] for cell in cells])
    if is_pooled(metric):
        return replace(over_seeds, low=float(np.maximum(0, over_seeds.low)), high=float(np.minimum(1, over_seeds.high)))
    names = sorted({name for cell in cells for name in cell.values.get(metric, {})})
    if not names:
        return over_seeds
    table = _table(metric, cells, names)
    groups = [prompts.get(name, name) for name in names]
    unbounded = metric in _UNBOUNDED or metric.endswith(("margin", "kendall_tau"))
    estimate = (unbounded_mean_over_seeds if unbounded else mean_over_seeds)(table, groups)
    # A group that is missing for some seed counts only in the mean. NumPy's functions keep NaN: no interval.
    low, high = np.minimum(over_seeds.value, estimate.low), np.maximum(over_seeds.value, estimate.high)
    return replace(over_seeds, low=float(low), high=float(high))


def _table(metric: str, cells: Sequence[Cell], names: Sequence[str]) -> Floats:
    """[S, G] values of groups or fresh samples by seed; NaN where one was not measured."""
    rows = [[cell.values[metric].get(name, math.nan) for name in names] for cell in cells]
    return np.array(rows, dtype=np.float64).reshape(len(cells), len(names))


def name_of(cell: Cell) -> str:
    """The text of a variant, as in ``dpo, beta 0.1``."""
    return ", ".join([cell.method, *(f"{key.rsplit('.', 1)[-1]} {value}" for key, value in cell.settings.items())])


def difference(ours: Sequence[Cell], baseline: Sequence[Cell], comparison: Comparison) -> Difference:
    """A variant minus the baseline on the primary metric, over the seeds that both have.

    Values are paired by group where the metric is a mean over groups, and then by prompt.
    """
    metric = comparison.primary
    our_cells = {cell.seed: cell for cell in ours if metric in cell.metrics}
    baseline_cells = {cell.seed: cell for cell in baseline if metric in cell.metrics}
    seeds = sorted(our_cells.keys() & baseline_cells.keys())
    if is_pooled(metric):
        return _pooled([our_cells[seed].metrics[metric] - baseline_cells[seed].metrics[metric] for seed in seeds])
    names = sorted(
        {name for cells in (our_cells, baseline_cells) for seed in seeds for name in cells[seed].values[metric]}
    )
    pair = [_table(metric, [cells[seed] for seed in seeds], names) for cells in (our_cells, baseline_cells)]
    # A fresh sample has a prompt to itself.
    return paired_difference(*by_prompt(pair, [comparison.prompts.get(name, name) for name in names]))


def _pooled(differences: Sequence[float]) -> Difference:
    difference = paired_seeds(differences, [0.0] * len(differences))
    if len(differences) > 1 and np.ptp(differences) < 1e-12:
        # Equal seeds have an error of zero, which would call any difference, however small, better or worse.
        return replace(difference, low=math.nan, high=math.nan, variances=None)
    return difference


def cost(cells: Iterable[Cell]) -> dict[str, float]:
    """Mean costs of a variant's cells."""
    costs = [cell.cost for cell in cells if cell.cost]
    return {name: sum(cell_cost[name] for cell_cost in costs) / len(costs) for name in (costs[0] if costs else {})}


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
