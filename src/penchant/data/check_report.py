"""The report of a check of preference data: plain values, of which only `Finding` is a judgement."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
