"""The report of a run as a self-contained HTML file without scripts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.evaluation.figures import Series, line_chart
from penchant.storage.files import write_atomically


@dataclass(frozen=True)
class Curve:
    """A chart of metrics over training steps.

    Attributes:
        unit: unit of the y axis.
        series: name -> (steps, values); None leaves a gap.
    """

    title: str
    unit: str
    series: Series

    @property
    def svg(self) -> str:
        return line_chart(self.title, "step", self.unit, self.series)

    @property
    def captions(self) -> list[str]:
        """First and last value of every series as text."""
        return [_caption(name, xs, ys) for name, (xs, ys) in self.series.items()]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        rows: rows of as many cells as `columns`.
        note: explanation of the numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{len(self.columns)} columns but a row of {len(row)} cells: {row!r}")


@dataclass(frozen=True)
class Sample:
    """A prompt with the model's answers before and after training."""

    prompt: str
    answer_before: str
    answer_after: str


@dataclass(frozen=True)
class Figure:
    """A chart as SVG markup.

    Attributes:
        svg: markup by `penchant.evaluation.figures`, which is inserted into the page unescaped.
    """

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """The content of a report; empty sections do not appear.

    Attributes:
        summary: (label, value) pairs.
        details: tables after the charts.
        notices: warnings about the validity of the numbers.
        config_yaml: the run's configuration.
    """

    title: str
    summary: Sequence[tuple[str, str]] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[Table] = ()
    samples: Sequence[Sample] = ()
    figures: Sequence[Figure] = ()
    details: Sequence[Table] = ()
    notices: Sequence[str] = ()
    config_yaml: str = ""


def write_report(path: Path, report: RunReport) -> None:
    """Write the report as one HTML file, whole or not at all.

    Raises:
        ConfigError: the file cannot be written.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    write_atomically(path, environment.get_template("report.html").render(report=report))


def show(estimate: Mapping[str, Any] | None) -> str:
    """Value and 95 % interval as text; empty without a value."""
    if estimate is None or estimate["value"] is None:
        return ""
    if estimate["low"] is None:
        return f"{estimate['value']:.3f}"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def _caption(name: str, xs: Sequence[float], ys: Sequence[float | None]) -> str:
    points = [(x, y) for x, y in zip(xs, ys, strict=True) if y is not None and math.isfinite(y)]
    gaps = f", {len(xs) - len(points)} not a number" if len(points) < len(xs) else ""
    if not points:
        return f"{name}: no value{gaps}"
    (first_x, start), (last_x, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name}: {start:.4g} at step {first_x:g}{gaps}"
    return f"{name}: {start:.4g} at step {first_x:g}, {end:.4g} at step {last_x:g}{gaps}"
