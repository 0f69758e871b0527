"""How often a judge prefers one model's responses to another's, asked in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.data.groups import Text, as_text
from penchant.evaluation.judges import Judge, Verdict
from penchant.evaluation.length_control import length_controlled
from penchant.evaluation.report import Table, show
from penchant.evaluation.statistics import Estimate, bootstrap_mean


@dataclass(frozen=True)
class WinRate:
    """What the judge said of N prompts.

    Attributes:
        rate: share of prompts won, a tie counting half; the interval is over prompts.
        length_controlled: the rate where both answers are equally long; see `evaluation.length_control`.
        wins, losses, ties: prompts; a tie is also where the two orders disagree.
        agreement: share of the prompts judged in both orders where the two say the same; None where none was.
        failed: verdicts (two a prompt) that the judge did not give; their prompts count as ties.
        values: 1, 1/2 or 0 for each prompt.
    """

    judge: str
    rate: Estimate
    length_controlled: Estimate
    wins: int
    losses: int
    ties: int
    agreement: float | None
    failed: int
    values: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        numbers = {name: getattr(self, name) for name in ("judge", "wins", "losses", "ties", "agreement", "failed")}
        rates = {name: getattr(self, name).to_json() for name in ("rate", "length_controlled")}
        return {**numbers, **rates, "n": len(self.values)}


def verdict_tables(judged: Mapping[str, Mapping[str, Any]], against: str) -> list[Table]:
    """A report's table of win rates, as `WinRate.to_json` gives them, by whose they are; none where there are none."""
    counts = ("wins", "losses", "ties", "failed")
    rows = [
        (name, show(row["rate"]), show(row["length_controlled"]), *(str(row[key]) for key in counts))
        for name, row in judged.items()
    ]
    note = "Each pair is shown in both orders; a tie is also where the orders disagree or a verdict failed."
    table = Table(f"By the judge, against {against}", ("", "win rate", "at equal lengths", *counts), rows, note)
    return [table] if rows else []


def win_rate(judge: Judge, prompts: Sequence[Text], ours: Sequence[Text], theirs: Sequence[Text]) -> WinRate:
    """Judge each pair of responses twice, the second time in the other order."""
    sides = (ours, theirs)
    one = judge.compare(prompts, ours, theirs)
    two = judge.compare(prompts, theirs, ours)
    values = tuple(_value(first, second) for first, second in zip(one, two, strict=True))
    # A tie of ours, for want of an answer, says nothing of whether the judge agrees with itself.
    judged = [pair for pair in zip(one, two, strict=True) if not any(verdict.failed for verdict in pair)]
    agreeing = sum(first.side == _TURNED[second.side] for first, second in judged)
    return WinRate(
        judge=judge.name,
        rate=bootstrap_mean(values, range(len(values))),
        length_controlled=length_controlled(values, *([len(as_text(text).split()) for text in side] for side in sides)),
        wins=values.count(1.0),
        losses=values.count(0.0),
        ties=values.count(0.5),
        agreement=agreeing / len(judged) if judged else None,
        failed=sum(verdict.failed for verdict in (*one, *two)),
        values=values,
    )


_TURNED = {"first": "second", "second": "first", "tie": "tie"}


def _value(first: Verdict, second: Verdict) -> float:
    """A side wins only where both orders name it: named in one and a tie in the other is a tie."""
    if first.side != _TURNED[second.side]:
        return 0.5
    return {"first": 1.0, "tie": 0.5, "second": 0.0}[first.side]
