"""A check of preference data as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from penchant.data.check_report import CheckReport, Counts, Finding, LengthBias, Share

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_QUANTILES = ("min", "5 %", "25 %", "50 %", "75 %", "95 %", "99 %", "max")


def render(report: CheckReport) -> Group:
    """The report as tables: how much there is, how long it is, and the findings with what to do, severest first."""
    from rich.console import Group

    return Group(*_parts(report))


def _parts(report: CheckReport) -> Iterator[RenderableType]:
    from rich.text import Text

    yield _overview(report)
    yield _lengths(report)
    if report.length_bias is not None:
        yield Text(_length_bias(report.length_bias))
    yield _findings(report.findings) if report.findings else Text("Nothing found.", style="green")


def _overview(report: CheckReport) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="overview", title_justify="left", show_header=False)
    for name, value in _amounts(report.counts):
        table.add_row(name, Text(_visible(value)))
    ties = report.ties
    if ties.couples:
        what = f"{ties.tied} tied, {ties.undecided} not preferred either way, of {ties.couples} couples"
        table.add_row("without preference", what)
    return table


def _amounts(counts: Counts) -> Iterator[tuple[str, str]]:
    yield "groups", f"{counts.groups} ({counts.without_pairs} without a pair)"
    yield "distinct prompts", str(counts.prompts)
    yield "candidates", str(counts.candidates)
    yield "pairs", str(counts.pairs)
    yield "groups by candidates", _listed({f"K = {size}": groups for size, groups in counts.by_size.items()})
    if counts.desirable or counts.undesirable:
        yield "labels", f"{counts.desirable} desirable, {counts.undesirable} undesirable"
    if counts.by_source:
        yield "groups by source", _listed(counts.by_source)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _lengths(report: CheckReport) -> Table:
    from rich.table import Table

    table = Table("lengths", title="lengths", title_justify="left")
    for name in _QUANTILES:
        table.add_column(name, justify="right")
    for lengths in report.lengths:
        rows = {"prompts": lengths.prompts, "candidates": lengths.candidates, "longest sequence": lengths.longest}
        for name, quantiles in rows.items():
            table.add_row(f"{name}, {lengths.unit}", *map(str, asdict(quantiles).values()))
    return table


def _length_bias(bias: LengthBias) -> str:
    return (
        f"The chosen is longer in {_share(bias.longer)} of {bias.longer.n} pairs and of equal length in "
        f"{bias.equal:.1%}, in {bias.unit}; where lengths differ, the longer wins in "
        f"{_share(bias.longer_where_unequal)}. Intervals: 95 %, over prompts."
    )


def _share(share: Share) -> str:
    value = "none" if share.value is None else f"{share.value:.1%}"
    return value if share.low is None or share.high is None else f"{value} [{share.low:.1%}, {share.high:.1%}]"


def _findings(found: tuple[Finding, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="findings", title_justify="left", show_lines=True)
    table.add_column("severity", no_wrap=True)
    table.add_column("what was found, and what to do", ratio=1)
    for finding in found:
        table.add_row(Text(finding.severity, style=_COLOURS[finding.severity]), _described(finding))
    return table


def _described(finding: Finding) -> Text:
    # Text objects are never parsed for markup, so an id may hold "[bold]" and show it.
    from rich.text import Text

    lines = Text(finding.what)
    if finding.ids:
        lines.append(f"\nfor example: {_visible(', '.join(finding.ids))}", style="dim")
    return lines.append(f"\nwhat to do: {finding.fix}", style="italic")


def _visible(text: str) -> str:
    """The text without characters that could move the cursor or recolour the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
