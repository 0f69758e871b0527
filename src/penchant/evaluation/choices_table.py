"""Multiple-choice accuracies as a person reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from penchant.evaluation.choices import TaskReport
from penchant.evaluation.choices_suites import ChoicesReport, SuiteReport
from penchant.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


def render(report: ChoicesReport) -> Group:
    """Accuracies side by side, then the baselines, with each number's definition below."""
    from rich.console import Group

    return Group(*_parts(report))


def _parts(report: ChoicesReport) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    scores = list(report.tasks[0].accuracy)
    accuracy = Table("task", "questions", "chance", *scores, "ties", title="accuracy and its 95 % interval")
    for task in report.tasks:
        ties = ", ".join(map(str, task.ties.values()))
        cells = [_cell(task.accuracy[score]) for score in scores]
        accuracy.add_row(Text(task.name), str(task.questions), f"{task.chance:.4f}", *cells, ties)
    if report.suite is not None:
        accuracy.add_section()
        accuracy.add_row(*_suite_cells(report.suite, scores))
    yield accuracy
    baselines = Table("task", *report.tasks[0].baselines, title="without a model")
    for task in report.tasks:
        baselines.add_row(Text(task.name), *map(_cell, task.baselines.values()))
    yield baselines
    yield from (Text(line) for task in report.tasks for line in _left_out(task))
    yield Text("The 95 % intervals are over passages, or prompts where questions have none.")
    for name, definition in report.definitions.items():
        yield Text.assemble((name, "bold"), f": {definition}")


def _suite_cells(suite: SuiteReport, scores: list[str]) -> list[str]:
    estimates = [suite.accuracy[score] for score in scores]
    return [suite.suite.name, str(estimates[0].n), f"{suite.chance:.4f}", *map(_cell, estimates), ""]


def _left_out(task: TaskReport) -> list[str]:
    return [f"{task.name}: {count} left out: {why.replace('_', ' ')}" for why, count in task.left_out.items()]


def _cell(estimate: Estimate) -> str:
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.4f}, {estimate.high:.4f}]"
    return f"{estimate.value:.4f}{interval}"
