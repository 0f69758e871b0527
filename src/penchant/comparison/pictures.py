"""A comparison's pictures: reward against KL, the primary metric by data size, training curves."""

from __future__ import annotations

from penchant.comparison.config import START
from penchant.comparison.summary import Row, Summary
from penchant.evaluation.figures import FrontierPoint, Series, frontier_chart, line_chart
from penchant.evaluation.report import Figure


def figures(summary: Summary) -> list[Figure]:
    """Those that there is something to show for."""
    return [*_frontier(summary), *_sizes(summary), *_curves(summary)]


def _frontier(summary: Summary) -> list[Figure]:
    """At the largest size: a line joins a method's variants, as in a sweep of beta."""
    points: dict[str, list[FrontierPoint]] = {}
    for row in _largest(summary):
        reward, kl = row.metrics.get("reward"), row.metrics.get("kl")
        if reward is not None and kl is not None:
            points.setdefault(row.method, []).append((kl.value, reward.value, reward.low, reward.high))
    if not points:
        return []
    note = "Up and to the left is better: more reward for less distance from the start. Means over seeds and prompts, "
    note += "with the reward's 95 % interval; a method's variants are joined in the order of their KL."
    return [Figure("Reward against KL", frontier_chart(points), note)]


def _sizes(summary: Summary) -> list[Figure]:
    if len(summary.sizes) < 2:
        return []
    primary = summary.comparison.primary
    series: dict[str, tuple[list[float], list[float | None]]] = {}
    for row in summary.rows:
        if primary in row.metrics:
            xs, ys = series.setdefault(row.variant, ([], []))
            xs.append(float(row.size))
            ys.append(row.metrics[primary].value)
    picture = line_chart(f"{primary} by data size", "training groups", primary, series)
    note = "Means over seeds and prompts; the smaller sets are contained in the larger. The intervals are in the table."
    return [Figure(f"{primary} by data size", picture, note)]


def _curves(summary: Summary) -> list[Figure]:
    """Means over the seeds that have a step, at the largest size."""
    found = []
    units = {"loss": "nats", "rewards/margins": "nats", "eval_rewards/accuracies": "share of pairs"}
    for name, unit in units.items():
        series: Series = {row.variant: curve for row in _largest(summary) if (curve := _mean_curve(row, name))[0]}
        if series:
            note = "Means over seeds. Losses of different methods are not comparable." if name == "loss" else ""
            found.append(Figure(f"{name} while training", line_chart(name, "step", unit, series), note))
    return found


def _mean_curve(row: Row, name: str) -> tuple[list[float], list[float | None]]:
    by_step: dict[int, list[float]] = {}
    for cell in row.cells.values():
        for step, value in cell.curves.get(name, ()):
            by_step.setdefault(step, []).append(value)
    steps = sorted(by_step)
    return [float(step) for step in steps], [sum(by_step[step]) / len(by_step[step]) for step in steps]


def _largest(summary: Summary) -> list[Row]:
    largest = summary.sizes[-1]
    return [row for row in summary.rows if row.size == largest and (row.cells or row.method == START)]
