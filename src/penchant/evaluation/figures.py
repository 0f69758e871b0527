"""Charts as SVG markup for an HTML page: text and axes take the page's colour, the background is transparent."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series = Mapping[str, tuple[Sequence[float], Sequence[float | None]]]
"""Name -> (xs, ys); a y that is None or not finite leaves a gap."""

FrontierPoint = tuple[float, float, float, float]
"""KL from the reference in nats, reward, and the low and high bound of the reward's 95 % interval."""

# Readable on white and on near-black alike.
_COLORS = ("#4c7fc4", "#d9762f", "#3f9b68", "#b5539c", "#8a8530", "#7d6bc4", "#c44e52", "#2f97a3")
_STYLES = (("-", "o"), ("--", "s"), (":", "^"))
"""Line style and marker; the marker distinguishes series of a single point."""
# Matplotlib cannot draw in the page's colour: this colour stands for it and is replaced in the markup.
_INK = "#010203"
_MARKERS_MAX_POINTS = 40
_LEGEND_INSIDE_MAX = 6
"""Largest number of series whose legend is inside the axes."""


def line_chart(title: str, x_label: str, y_label: str, series: Series) -> str:
    """SVG of lines over a common x axis; the same input gives the same bytes."""
    with _axes(title, x_label, y_label) as (figure, axes):
        for (name, (xs, ys)), (color, style, shape) in zip(series.items(), _line_styles(), strict=False):
            values = [math.nan if y is None else y for y in ys]
            # A lone point draws no line.
            marker = shape if len(values) <= _MARKERS_MAX_POINTS else ""
            axes.plot(list(xs), values, label=name, marker=marker, color=color, linestyle=style)
        if all(float(x).is_integer() for xs, _ in series.values() for x in xs):
            axes.locator_params(axis="x", integer=True)
        _legend(axes, len(series))
        return _markup(figure, title)


def frontier_chart(points: Mapping[str, Sequence[FrontierPoint]]) -> str:
    """SVG of reward over KL from the reference, with intervals and a line per method.

    See Gao et al. 2022, arXiv 2210.10760, figure 1; Rafailov et al. 2023, arXiv 2305.18290, figure 2.

    Args:
        points: method -> (KL in nats, reward, low, high); low and high may be NaN.
    """
    title = "Reward and KL"
    with _axes(title, "KL(policy ‖ reference), nats", "reward") as (figure, axes):
        for (name, method_points), (color, style, shape) in zip(points.items(), _line_styles(), strict=False):
            ordered = sorted(method_points)
            kls, rewards = [point[0] for point in ordered], [point[1] for point in ordered]
            axes.plot(kls, rewards, label=name, marker=shape, color=color, linestyle=style)
            bounded = [point for point in ordered if math.isfinite(point[2]) and math.isfinite(point[3])]
            if bounded:
                bounded_kls, _, lows, highs = zip(*bounded, strict=True)
                axes.vlines(bounded_kls, lows, highs, colors=color, linewidth=1, alpha=0.6)
        _legend(axes, len(points))
        return _markup(figure, title)


@contextmanager
def _axes(title: str, x_label: str, y_label: str) -> Iterator[tuple[Figure, Axes]]:
    """Context of an empty figure and its axes, without pyplot and its global figures."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": f"penchant {title}",
        "font.size": 9,
        "text.usetex": False,
        "text.parse_math": False,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.formatter.useoffset": False,
        "lines.linewidth": 1.4,
        "lines.markersize": 4,
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The page's fonts draw the text; that Matplotlib's own lack a glyph does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        yield figure, axes


def _line_styles() -> Iterator[tuple[str, str, str]]:
    """Endless (color, line style, marker): solid with discs, then dashed with squares, then dotted with triangles."""
    return cycle((color, *style) for style in _STYLES for color in _COLORS)


def _legend(axes: Axes, series: int) -> None:
    from matplotlib.figure import Figure as Figure_

    if series > _LEGEND_INSIDE_MAX:
        # Beside the picture, and the picture tall enough for it.
        figure = axes.figure
        assert isinstance(figure, Figure_)
        figure.set_size_inches(7.6, max(3.2, 0.19 * series))
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif series:
        axes.legend(frameon=False, fontsize=8)


def _markup(figure: Figure, title: str) -> str:
    from html import escape

    from matplotlib.backends.backend_svg import FigureCanvasSVG

    text = StringIO()
    FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # The page gives the size; ids of groups would be the same in each picture of a page.
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{escape(title)}"', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return svg.replace(_INK, "currentColor").strip()
