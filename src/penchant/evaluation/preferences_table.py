"""Held-out preference metrics as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penchant.evaluation.calibration import Calibration
from penchant.evaluation.preferences import PreferenceReport
from penchant.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


def render(report: PreferenceReport) -> Group:
    """The report as tables, with each metric's definition below."""
    from rich.console import Group

    return Group(*_parts(report))


def _parts(report: PreferenceReport) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if report.groups:
        left_out = f"; {report.groups_without_pairs} without a pair left out" if report.groups_without_pairs else ""
        yield Text(f"{report.pairs} pairs in {report.groups} groups of {report.prompts} prompts{left_out}")
    else:
        yield Text(f"{report.groups_without_pairs} groups, none with a preferred response and another")
    metrics = Table("metric", "value", "95 % interval", "n")
    names = [name for name, estimate in report.metrics.items() if estimate.n]
    for name in names:
        metrics.add_row(Text(name), *_cells(report.metrics[name]))
    yield metrics
    if report.by_source:
        sources = Table("source", "groups", "accuracy", "95 % interval", "margin", "95 % interval")
        for source, row in report.by_source.items():
            sources.add_row(Text(source), str(row.groups), *_cells(row.accuracy)[:2], *_cells(row.margin)[:2])
        yield sources
    if report.calibration is not None and report.calibration.bins:
        yield from _calibration(report.calibration)
    yield Text("The 95 % intervals are over prompts.")
    for name in names:
        yield Text.assemble((name, "bold"), f": {report.definitions[name]}")
    if report.calibration is not None and report.calibration.bins:
        yield Text.assemble(("calibration", "bold"), f": {report.calibration.definition}")


def _calibration(calibration: Calibration) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    bins = Table("predicted", "observed", "95 % interval", "pairs", title="calibration")
    for each in calibration.bins:
        bins.add_row(f"{each.predicted:.4f}", *_cells(each.observed))
    yield bins
    error = calibration.expected_calibration_error
    chance = f"rewards with true probabilities: {calibration.calibrated_error:.4f}"
    yield Text(f"expected calibration error {error.value:.4f} (n = {error.n} pairs; {chance})")


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    """Value, interval and n."""
    value = "none" if math.isnan(estimate.value) else f"{estimate.value:.4f}"
    interval = "none" if math.isnan(estimate.low) else f"[{estimate.low:.4f}, {estimate.high:.4f}]"
    return value, interval, str(estimate.n)
