"""The report of a run: one HTML file that needs nothing else, neither scripts nor network."""

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
    """A picture of metrics over training steps.

    Attributes:
        unit: of the y axis.
        series: name -> (steps, values); a value that is None leaves a gap.
    """

    title: str
    unit: str
    series: Series

    @property
    def svg(self) -> str:
        return line_chart(self.title, "step", self.unit, self.series)

    @property
    def captions(self) -> list[str]:
        """Each series' first and last value, for who reads numbers rather than pictures."""
        return [_caption(name, xs, ys) for name, (xs, ys) in self.series.items()]


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        rows: each as long as `columns`.
        note: how to read it, and what the numbers are of.
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
    """What the model answers to a prompt before and after training."""

    prompt: str
    before: str
    after: str


@dataclass(frozen=True)
class Figure:
    """A picture.

    Attributes:
        svg: markup as `penchant.evaluation.figures` makes it; it goes into the page as it is.
    """

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """All that a report shows; a section without content does not appear.

    Attributes:
        summary: (label, value) pairs.
        details: tables that come after the pictures.
        notices: what a reader must know before trusting the numbers.
        config_yaml: the whole configuration of the run.
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
    """Value and 95 % interval, for people; nothing where there is none."""
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
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"{name}: {start:.4g} at step {first:g}{gaps}"
    return f"{name}: {start:.4g} at step {first:g}, {end:.4g} at step {last:g}{gaps}"
