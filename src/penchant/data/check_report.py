"""What is found in preference data: plain values, without judgement but for `Finding`."""

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
    """How much there is.

    Attributes:
        prompts: distinct prompts.
        pairs: (better, worse) pairs derived from all groups.
        by_size: K -> groups with K candidates.
        without_pairs: groups that give no pair.
        desirable, undesirable: candidates labelled yes, no.
        by_source: source -> groups; empty when no group has a source.
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
    """Quantiles of lengths; each is a length that occurs (the inverse of the empirical distribution function)."""

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
    """Lengths in one unit, without special tokens and what a chat template adds.

    Attributes:
        prompts: one for each group.
        candidates: one for each candidate.
        longest: one for each group: its prompt and its longest candidate.
    """

    unit: Unit
    prompts: Quantiles
    candidates: Quantiles
    longest: Quantiles


@dataclass(frozen=True)
class Share:
    """A share of n pairs with its 95 % interval over prompts.

    Attributes:
        value: None where n is 0.
        low, high: None where fewer than two prompts have such pairs: one tells nothing of how prompts differ.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class LengthBias:
    """How well length alone tells chosen from rejected.

    Attributes:
        unit: what lengths are counted in.
        longer: share of all pairs whose chosen is longer; the strict accuracy of "the longer wins", a tie being a miss.
        equal: share of all pairs of equal lengths; the ties of "the longer wins".
        longer_where_unequal: the accuracy of "the longer wins" on the pairs it decides; 0.5 is no bias.
    """

    unit: Unit
    longer: Share
    equal: float
    longer_where_unequal: Share


@dataclass(frozen=True)
class Ties:
    """Couples of candidates of one group without a preferred one.

    Attributes:
        couples: all couples: K (K - 1) / 2 for each group.
        tied: couples of equal scores or equal ranks.
        undecided: other couples not preferred either way: a tie, or never compared.
    """

    couples: int
    tied: int
    undecided: int


@dataclass(frozen=True)
class Hits:
    """How often a check found what it looks for.

    Attributes:
        count: how many.
        of: out of how many looked at.
        ids: of the first few groups concerned.
        names: what it was, the most frequent first, where a check tells kinds apart.
    """

    count: int
    of: int
    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    Attributes:
        name: the check it comes from.
        severity: "error" would stop or spoil training; "warning" may; "note" is only to be known.
        count: how many.
        ids: of the first few groups concerned.
        what: what was found, in one line.
        fix: what to do, in one line.
    """

    name: str
    severity: Severity
    count: int
    ids: tuple[str, ...]
    what: str
    fix: str


@dataclass(frozen=True)
class CheckReport:
    """What is in a preference file.

    Attributes:
        lengths: in characters, and in tokens where a tokenizer was given.
        length_bias: None where there are no pairs.
        checks: name -> hits, also where there are none; a check that could not be made is absent.
        findings: what the hits mean, the severest first.
    """

    counts: Counts
    lengths: tuple[Lengths, ...]
    ties: Ties
    length_bias: LengthBias | None
    checks: Mapping[str, Hits]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """All fields by name, of JSON's own types only (lists, string keys)."""
        document: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        for hits in document["checks"].values():
            if not hits["names"]:
                del hits["names"]
        return document
