"""The report of a check of preference data, of which only `Finding` is a judgement, and its tables for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
Unit = Literal["characters", "tokens"]


@dataclass(frozen=True)
class Counts:
    """Amounts of data.

    Attributes:
        groups: number of groups.
        candidates: number of candidates.
        prompts: number of distinct prompts.
        pairs: number of (better, worse) pairs derived from all groups.
        by_size: number of groups with K candidates, by K.
        without_pairs: number of groups that give no pair.
        desirable: number of candidates labelled yes.
        undesirable: number of candidates labelled no.
        by_source: number of groups by source; empty when no group has a source.
    """

    groups: int
    candidates: int
    prompts: int
    pairs: int
    by_size: Mapping[int, int]
    without_pairs: int
    desirable: int
    undesirable: int
    by_source: Mapping[str, int]


@dataclass(frozen=True)
class Quantiles:
    """Quantiles of lengths by the inverse of the empirical distribution function: each is a length that occurs."""

    min: int
    p5: int
    p25: int
    p50: int
    p75: int
    p95: int
    p99: int
    max: int


@dataclass(frozen=True)
class Lengths:
    """Quantiles of lengths in one unit, without special tokens and without the text of a chat template.

    Attributes:
        unit: unit of the lengths.
        prompts: lengths of the groups' prompts.
        candidates: lengths of the candidates.
        longest: lengths of each group's prompt with its longest candidate.
    """

    unit: Unit
    prompts: Quantiles
    candidates: Quantiles
    longest: Quantiles


@dataclass(frozen=True)
class Share:
    """A share of n pairs with its 95 % interval over prompts.

    Attributes:
        value: the share, between 0 and 1; None where n is 0.
        low: lower end of the interval; None where fewer than two prompts have such pairs, so that their variation is
            unknown.
        high: upper end of the interval; None where `low` is.
        n: number of pairs.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class LengthBias:
    """How well length alone separates chosen from rejected.

    Attributes:
        unit: unit of the lengths.
        longer: share of all pairs whose chosen is longer: the accuracy of "the longer wins" with ties as errors.
        equal: share of all pairs of equal length: the ties of "the longer wins".
        longer_where_unequal: accuracy of "the longer wins" on pairs of unequal length; 0.5 is no bias.
    """

    unit: Unit
    longer: Share
    equal: float
    longer_where_unequal: Share


@dataclass(frozen=True)
class Ties:
    """Couples (two candidates of one group) without a preference.

    Attributes:
        couples: number of all couples: K (K - 1) / 2 for each group.
        tied: number of couples with equal scores or equal ranks.
        undecided: number of other couples without a preference: tied, or never compared.
    """

    couples: int
    tied: int
    undecided: int


@dataclass(frozen=True)
class Hits:
    """The hits of one check.

    Attributes:
        count: number of hits.
        of: number of things that the check looked at.
        ids: ids of the first few groups with a hit.
        names: the kinds of hits with their counts, the most frequent first, where a check has several.
    """

    count: int
    of: int
    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """A judgement on the hits of one check.

    Attributes:
        name: name of the check.
        severity: "error" would stop or spoil training; "warning" may; "note" is information.
        count: number of hits.
        ids: ids of the first few groups with a hit.
        what: description of the hits, in one line.
        fix: how to correct the data, in one line.
    """

    name: str
    severity: Severity
    count: int
    ids: tuple[str, ...]
    what: str
    fix: str


@dataclass(frozen=True)
class CheckReport:
    """The report on one preference file.

    Attributes:
        counts: amounts of data.
        lengths: quantiles of lengths in characters, and in tokens where a tokenizer was named.
        ties: couples of candidates without a preference.
        length_bias: how well length alone predicts the preference; None where there are no pairs.
        checks: hits by name of check, also where the count is 0; a check that could not run is absent.
        findings: judgements on the hits, the severest first.
    """

    counts: Counts
    lengths: tuple[Lengths, ...]
    ties: Ties
    length_bias: LengthBias | None
    checks: Mapping[str, Hits]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values (lists, string keys)."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        for hits in document["checks"].values():
            if not hits["names"]:
                del hits["names"]
        return document


_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_QUANTILES = ("min", "5 %", "25 %", "50 %", "75 %", "95 %", "99 %", "max")


def render(report: CheckReport) -> Group:
    """The report as tables: amounts, lengths, and findings with their fixes, the severest first."""
    from rich.console import Group

    return Group(*_sections(report))


def _sections(report: CheckReport) -> Iterator[RenderableType]:
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
    for name, value in _overview_rows(report.counts):
        table.add_row(name, Text(_printable(value)))
    ties = report.ties
    if ties.couples:
        message = f"{ties.tied} tied, {ties.undecided} not preferred either way, of {ties.couples} couples"
        table.add_row("without preference", message)
    return table


def _overview_rows(counts: Counts) -> Iterator[tuple[str, str]]:
    yield "groups", f"{counts.groups} ({counts.without_pairs} without a pair)"
    yield "distinct prompts", str(counts.prompts)
    yield "candidates", str(counts.candidates)
    yield "pairs", str(counts.pairs)
    yield "groups by candidates", _format_counts({f"K = {size}": groups for size, groups in counts.by_size.items()})
    if counts.desirable or counts.undesirable:
        yield "labels", f"{counts.desirable} desirable, {counts.undesirable} undesirable"
    if counts.by_source:
        yield "groups by source", _format_counts(counts.by_source)


def _format_counts(counts: Mapping[str, int]) -> str:
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


def _findings(findings: tuple[Finding, ...]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title="findings", title_justify="left", show_lines=True)
    table.add_column("severity", no_wrap=True)
    table.add_column("what was found, and what to do", ratio=1)
    for finding in findings:
        table.add_row(Text(finding.severity, style=_COLOURS[finding.severity]), _describe_finding(finding))
    return table


def _describe_finding(finding: Finding) -> Text:
    # Text objects are never parsed for markup, so an id such as "[bold]" is shown as it is.
    from rich.text import Text

    lines = Text(finding.what)
    if finding.ids:
        lines.append(f"\nfor example: {_printable(', '.join(finding.ids))}", style="dim")
    return lines.append(f"\nwhat to do: {finding.fix}", style="italic")


def _printable(text: str) -> str:
    """The text without characters that could move the cursor or recolour the terminal."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
