"""Suites of multiple-choice tasks, a model's mean over one, and tables of both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from penchant.errors import ConfigError
from penchant.evaluation.choices import TaskReport, definitions
from penchant.evaluation.choices_metrics import METRICS
from penchant.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from rich.console import Group, RenderableType


@dataclass(frozen=True)
class Suite:
    """Tasks whose published numbers are averaged into one.

    Attributes:
        counts: unit of equal weight in the mean: every task or every question.
        shares: task -> its share of a task, for parts that count as one task together.
        metric: definition of the number, for people.
    """

    name: str
    tasks: tuple[str, ...]
    counts: Literal["tasks", "questions"]
    metric: str
    shares: Mapping[str, float] = field(default_factory=dict)


SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "gpt4all",
            ("hellaswag", "openbookqa", "winogrande", "arc_challenge", "arc_easy", "boolq", "piqa"),
            "tasks",
            "unweighted mean of the seven tasks' accuracies",
        ),
        Suite("race", ("race_middle", "race_high"), "questions", "accuracy over the questions of both parts"),
        Suite(
            "glue",
            (
                *("cola", "sst2", "mrpc", "stsb", "qqp"),
                *("mnli_matched", "mnli_mismatched", "qnli", "rte", "wnli"),
            ),
            "tasks",
            "unweighted mean of nine tasks: Matthews' correlation (cola); the mean of accuracy and F1 (mrpc, qqp), of "
            "Pearson's and Spearman's correlation (stsb), of both accuracies (mnli); accuracy (the others)",
            {"mnli_matched": 0.5, "mnli_mismatched": 0.5},
        ),
    )
}


@dataclass(frozen=True)
class SuiteReport:
    """Mean of a model's published numbers over a suite, by score."""

    suite: Suite
    mean: Mapping[str, Estimate]
    chance: float

    def to_json(self) -> dict[str, Any]:
        mean = {name: estimate.to_json() for name, estimate in self.mean.items()}
        return {
            "name": self.suite.name,
            "tasks": list(self.suite.tasks),
            "mean": mean,
            "chance": self.chance,
            "definition": self.suite.metric,
        }


@dataclass(frozen=True)
class ChoicesReport:
    """The reports of all tasks, and of the suite if one was requested."""

    tasks: tuple[TaskReport, ...]
    suite: SuiteReport | None

    @property
    def definitions(self) -> dict[str, str]:
        """Definition of every number by name."""
        lines = definitions(list(self.tasks[0].accuracy))
        metrics = dict.fromkeys(metric for task in self.tasks for metric in task.official.metrics)
        lines |= {metric: METRICS[metric].definition for metric in metrics}
        return lines if self.suite is None else {**lines, self.suite.suite.name: self.suite.suite.metric}

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": {task.name: task.to_json() for task in self.tasks},
            "suite": None if self.suite is None else self.suite.to_json(),
            "definitions": self.definitions,
        }


def require_tasks(suite: Suite, names: Sequence[str]) -> None:
    """Check that every task of a suite is present, since a mean over fewer tasks is another number.

    Raises:
        ConfigError: tasks are missing; the message names them.
    """
    missing_tasks = [task for task in suite.tasks if task not in names]
    if missing_tasks:
        raise ConfigError(
            f"the suite {suite.name} is the mean over {', '.join(suite.tasks)}; not given: {', '.join(missing_tasks)}",
            where="--suite",
            fix="add " + " ".join(f"--task {task}=FILE" for task in missing_tasks) + ", or leave --suite out",
        )


def evaluate_suite(suite: Suite, reports: Sequence[TaskReport]) -> SuiteReport:
    """Mean of the published numbers over a suite by every score, with a 95 % interval from the tasks' intervals.

    The tasks' questions are independent samples, so the interval is that of a weighted sum of independent estimates:
    Zou and Donner 2008 (Statistics in Medicine 27:1693), equation 5.

    Raises:
        ConfigError: a task of the suite has no report.
    """
    require_tasks(suite, [report.name for report in reports])
    report_by_name = {report.name: report for report in reports}
    members = [report_by_name[task] for task in suite.tasks]
    sizes = [suite.shares.get(member.name, 1.0) if suite.counts == "tasks" else member.questions for member in members]
    weights = [size / sum(sizes) for size in sizes]
    mean = {
        score: weighted_sum([member.official.value[score] for member in members], weights)
        for score in members[0].accuracy
    }
    chance = sum(weight * member.official.chance for weight, member in zip(weights, members, strict=True))
    return SuiteReport(suite, mean, chance)


def weighted_sum(estimates: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """Sum of weight x estimate, weights >= 0; squared distances to the bounds add up, and NaN bounds stay NaN."""
    terms = list(zip(weights, estimates, strict=True))
    value = sum(weight * estimate.value for weight, estimate in terms)
    distance_below = math.sqrt(sum((weight * (estimate.value - estimate.low)) ** 2 for weight, estimate in terms))
    distance_above = math.sqrt(sum((weight * (estimate.high - estimate.value)) ** 2 for weight, estimate in terms))
    return Estimate(value, value - distance_below, value + distance_above, sum(estimate.n for estimate in estimates))


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
    yield accuracy
    published = [(task, name) for task in report.tasks for name in task.official.metrics if name != "accuracy"]
    if published or report.suite is not None:
        metrics = Table("task", "metric", "chance", *scores, title="published metrics and their 95 % intervals")
        for task, name in published:
            metrics.add_row(Text(task.name), name, "", *(_cell(task.official.metrics[name][score]) for score in scores))
        if report.suite is not None:
            metrics.add_section()
            metrics.add_row(*_suite_cells(report.suite, scores))
        yield metrics
    baselines = Table("task", *report.tasks[0].baselines, title="without a model")
    for task in report.tasks:
        baselines.add_row(Text(task.name), *map(_cell, task.baselines.values()))
    yield baselines
    yield from (Text(line) for task in report.tasks for line in _left_out(task))
    yield Text("The 95 % intervals are over passages, or prompts where questions have none.")
    for name, definition in report.definitions.items():
        yield Text.assemble((name, "bold"), f": {definition}")


def _suite_cells(suite: SuiteReport, scores: list[str]) -> list[str]:
    return [suite.suite.name, "mean", f"{suite.chance:.4f}", *(_cell(suite.mean[score]) for score in scores)]


def _left_out(task: TaskReport) -> list[str]:
    return [f"{task.name}: {count} left out: {reason.replace('_', ' ')}" for reason, count in task.left_out.items()]


def _cell(estimate: Estimate) -> str:
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.4f}, {estimate.high:.4f}]"
    return f"{estimate.value:.4f}{interval}"
