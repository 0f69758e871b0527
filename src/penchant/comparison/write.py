"""A comparison's files (compare.json, compare.md, compare.tex, compare.html), charts, and table in the terminal."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.comparison.config import START
from penchant.comparison.pair_values import is_pooled
from penchant.comparison.results_cache import Comparison
from penchant.comparison.summary import Row, Summary, cost, summarise
from penchant.evaluation.figures import FrontierPoint, Series, frontier_chart, line_chart
from penchant.evaluation.report import Figure, RunReport, Table, write_report
from penchant.evaluation.statistics import Estimate
from penchant.storage.files import write_atomically

if TYPE_CHECKING:
    from rich.table import Table as RichTable

logger = logging.getLogger(__name__)


def figures(summary: Summary) -> list[Figure]:
    """The figures for which there are values."""
    return [*_frontier(summary), *_sizes(summary), *_curves(summary)]


def _frontier(summary: Summary) -> list[Figure]:
    """Reward against KL at the largest size; a line joins a method's variants, as in a sweep of beta."""
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
    """Training curves at the largest size: means over the seeds that have a step."""
    figures = []
    units = {"loss": "nats", "rewards/margins": "nats", "eval_rewards/accuracies": "share of pairs"}
    for name, unit in units.items():
        series: Series = {row.variant: curve for row in _largest(summary) if (curve := _mean_curve(row, name))[0]}
        if series:
            note = "Means over seeds. Losses of different methods are not comparable." if name == "loss" else ""
            figures.append(Figure(f"{name} while training", line_chart(name, "step", unit, series), note))
    return figures


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


MEANS = (
    "Means over seeds and held-out prompts with a 95 % interval for new seeds and new prompts; of an AUC, for new "
    "seeds alone."
)
HOW = (
    "{means} The verdict is on {primary} against {baseline}: the difference "
    "over the same seeds and held-out prompts, its interval from {parts}, corrected for the number of methods (Holm; "
    "narrower where seeds differ no more than chance explains). A method is better or worse only where the corrected "
    "interval excludes zero."
)
PARTS = "the variance of seeds, of prompts (once each, however many groups they have) and of their combination"
POOLED = "the variance of seeds alone, for it is pooled over the prompts and says nothing of other ones"


def write_comparison(comparison: Comparison, folder: Path) -> tuple[dict[str, Any], RichTable]:
    """Write all of a comparison's files; returns the JSON document and the terminal's table."""
    summary = summarise(comparison)
    document = summary.to_json()
    write_atomically(folder / "compare.json", json.dumps(document, indent=1, ensure_ascii=False))
    write_atomically(folder / "compare.md", to_markdown(summary))
    write_atomically(folder / "compare.tex", to_latex(summary))
    write_page(folder / "compare.html", summary)
    logger.info(f"report: {folder / 'compare.html'}")
    return document, render(summary)


def render(summary: Summary) -> RichTable:
    """The terminal's table: variants as rows, the main metrics and the verdict as columns."""
    from rich.table import Table as RichTable
    from rich.text import Text

    names = summary.table_metrics[:4]
    table = RichTable("variant", "groups", "seeds", *names, "verdict", title=summary.comparison.title, show_lines=False)
    for row in summary.rows:
        cells = [estimate_text(row.metrics.get(name)) for name in names]
        table.add_row(Text(row.variant), str(row.size), str(len(row.cells)), *cells, Text(row.verdict_text))
    table.caption = Text("\n".join([reading_note(summary), *summary.comparison.notices]))
    return table


def reading_note(summary: Summary) -> str:
    """The note on how to read the table."""
    comparison = summary.comparison
    baseline = "the starting model" if comparison.baseline == START else comparison.baseline
    return HOW.format(
        means=MEANS,
        primary=comparison.primary,
        baseline=baseline,
        parts=POOLED if is_pooled(comparison.primary) else PARTS,
    )


def estimate_text(estimate: Estimate | None) -> str:
    """An estimate's value and interval as text."""
    if estimate is None or math.isnan(estimate.value):
        return ""
    if math.isnan(estimate.low):
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def difference_text(row: Row) -> str:
    """The difference from the baseline with its corrected interval as text."""
    if row.verdict is None or math.isnan(row.verdict.difference.value):
        return ""
    verdict = row.verdict
    if math.isnan(verdict.low):
        return f"{verdict.difference.value:+.3f}"
    return f"{verdict.difference.value:+.3f} [{verdict.low:+.3f}, {verdict.high:+.3f}]"


def _cells(summary: Summary, names: Sequence[str]) -> list[list[str]]:
    return [
        [
            row.variant,
            str(row.size),
            str(len(row.cells)),
            *(estimate_text(row.metrics.get(name)) for name in names),
            difference_text(row),
            row.verdict_text,
        ]
        for row in summary.rows
    ]


def to_markdown(summary: Summary) -> str:
    """A Markdown table, with a note on how to read it and every metric's definition."""
    comparison = summary.comparison
    against = f"{comparison.primary} against {escape_markdown(comparison.baseline)}"
    columns = ["variant", "groups", "seeds", *summary.table_metrics, against, "verdict"]
    lines = [
        f"# {escape_markdown(comparison.title)}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
    ]
    for variant, *numbers, verdict in _cells(summary, summary.table_metrics):
        cells = [escape_markdown(variant), *numbers, escape_markdown(verdict)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", escape_markdown(reading_note(summary)), ""]
    lines += [f"- **{name}**: {definition}" for name, definition in comparison.definitions.items()]
    lines += ["", *(f"- {escape_markdown(notice)}" for notice in comparison.notices)] if comparison.notices else []
    return "\n".join(lines) + "\n"


def escape_markdown(text: str) -> str:
    """Text escaped for Markdown: on one line, and neither table, link, code nor HTML."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(text.split()))


def to_latex(summary: Summary) -> str:
    """A LaTeX table for the booktabs package."""
    names = summary.table_metrics[:5]
    columns = ["variant", "groups", "seeds", *names, "difference", "verdict"]
    lines = [
        r"\begin{tabular}{l" + "r" * (len(columns) - 2) + "l}",
        r"\toprule",
        " & ".join(map(escape, columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(escape, cells)) + r" \\" for cells in _cells(summary, names)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join([f"% {line}" for line in (summary.comparison.title, reading_note(summary))] + lines) + "\n"


def escape(text: str) -> str:
    """Text escaped for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def write_page(path: Path, summary: Summary) -> None:
    """Write one self-contained HTML file."""
    comparison = summary.comparison
    verdicts = ("variant", "groups", "seeds", comparison.primary, f"against {comparison.baseline}", "verdict")
    columns = ("variant", "groups", *summary.table_metrics)
    metrics = [
        [row.variant, str(row.size), *(estimate_text(row.metrics.get(n)) for n in summary.table_metrics)]
        for row in summary.rows
    ]
    definitions = [(name, definition) for name, definition in comparison.definitions.items()]
    details = [
        Table("Every metric", columns, metrics, MEANS),
        *_sources(summary),
        _costs(summary),
        *([_judge_table(comparison.judge)] if comparison.judge else []),
        Table("What each metric is", ("metric", "definition"), definitions, ""),
    ]
    write_report(
        path,
        RunReport(
            title=comparison.title,
            summary=[
                ("starting model, and the reference of all metrics", comparison.model),
                ("data", comparison.data),
                ("baseline", comparison.baseline),
                ("primary metric", comparison.primary),
                ("cells", str(len([cell for cell in comparison.cells if cell.method != START]))),
            ],
            tables=[Table("Results by method", verdicts, _cells(summary, [comparison.primary]), reading_note(summary))],
            figures=figures(summary),
            details=details,
            notices=list(comparison.notices),
            config_yaml=comparison.config_yaml,
        ),
    )


def _sources(summary: Summary) -> list[Table]:
    """The primary metric by source, where the data has several."""
    primary = summary.comparison.primary
    sources = {group: source for cell in summary.comparison.cells for group, source in cell.sources.items()}
    names = sorted(set(sources.values()))
    if len(names) < 2:
        return []
    rows = []
    for row in summary.rows:
        cells = []
        for name in names:
            values = [
                value
                for cell in row.cells.values()
                for group, value in cell.values.get(primary, {}).items()
                if sources.get(group) == name
            ]
            cells.append(f"{sum(values) / len(values):.3f} (n {len(values)})" if values else "")
        rows.append([row.variant, str(row.size), *cells])
    note = "Means over the source's groups and all seeds; n counts both."
    return [Table(f"{primary} by source", ("variant", "groups", *names), rows, note)]


def _costs(summary: Summary) -> Table:
    rows = []
    for row in summary.rows:
        row_cost = cost(row.cells.values())
        if row_cost:
            rows.append(
                [
                    row.variant,
                    str(row.size),
                    f"{row_cost['tokens']:,.0f}",
                    f"{row_cost['seconds']:.1f}",
                    f"{row_cost['peak_memory_mb']:,.0f}",
                ]
            )
    note = (
        "Means over seeds. Seconds are those of training steps alone. On a CPU the peak memory is the whole process's "
    )
    note += "so far, which never falls: compare only a lower row with a higher one."
    return Table(
        "Cost of training", ("variant", "groups", "tokens trained on", "seconds", "peak memory, MB"), rows, note
    )


def _judge_table(judge: dict[str, Any]) -> Table:
    columns = ("cell", "wins", "losses", "ties", "agreement of the two orders", "no verdict")
    rows = []
    for name, counts in judge.items():
        agreement = "none judged" if counts["agreement"] is None else f"{counts['agreement']:.3f}"
        rows.append(
            [name, str(counts["wins"]), str(counts["losses"]), str(counts["ties"]), agreement, str(counts["failed"])]
        )
    return Table(
        "Verdicts of the judge", columns, rows, "Each pair was judged in both orders; a disagreement is a tie."
    )
