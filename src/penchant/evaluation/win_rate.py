"""How often a judge prefers one model's responses to another's in both orders, also at equal length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penchant.data.groups import Text, as_text
from penchant.evaluation.judges import Judge, Verdict
from penchant.evaluation.report import Table, show
from penchant.evaluation.statistics import Estimate, Floats, bootstrap_mean
from penchant.intervals.shares import pseudo_interval
from penchant.intervals.student_t import critical_value

PRECISION = 0.1
"""Of the normal prior on phi around 0: its standard deviation is 3.2 in log-odds, whatever the number of prompts."""

_TOLERANCE, _STEPS = 1e-10, 100


def length_controlled(values: Sequence[float], words: Sequence[int], rival_words: Sequence[int]) -> Estimate:
    """The controlled rate with a 95 % interval over prompts.

    The interval is that of a share whose sample is as large as gives theta's variance, by the model and by how the
    residuals differ from it (as ties do; the sandwich of White 1982).

    Args:
        values: 1 for a prompt won, 0 for one lost, 1/2 for a tie.
        words, rival_words: lengths of the answers, ours and the rival's.
    """
    wins, difference = (
        np.asarray(values, np.float64),
        np.asarray(words, np.float64) - np.asarray(rival_words, np.float64),
    )
    n = len(wins)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    spread = float(difference.std())
    longer = np.tanh(difference / spread) if spread > 0 else np.zeros(n)
    raw = float(wins.mean())
    if raw in (0.0, 1.0):  # No theta is large enough.
        rate, sample, square = raw, float(n), raw
    else:
        rate, sample, square = _controlled(wins, np.stack([np.ones(n), longer], 1))
    freedom = n - (2 if spread > 0 else 1)
    if freedom < 1:
        return Estimate(rate, math.nan, math.nan, n)
    low, high = pseudo_interval(rate, square, sample, critical_value(0.05, freedom))
    return Estimate(rate, low, high, n)


def _controlled(wins: Floats, inputs: Floats) -> tuple[float, float, float]:
    """The rate at equal lengths, the independent prompts its variance is worth, and the mean square of such a prompt.

    Args:
        wins: [N], not all 0 and not all 1.
        inputs: [N, 2] ones, and the squashed differences of length.
    """
    theta, curvature = _fit(wins, inputs)
    inverse = np.linalg.inv(curvature)
    rate = float(_sigmoid(theta[0]))
    residuals = inputs * (wins - _sigmoid(inputs @ theta))[:, None]
    by_residuals = float((inverse @ (residuals.T @ residuals) @ inverse)[0, 0])
    by_model = float(inverse[0, 0])
    variance = rate * (1 - rate)
    return rate, 1 / (variance * by_model), rate**2 + variance * by_residuals / by_model


def _fit(wins: Floats, inputs: Floats) -> tuple[Floats, Floats]:
    """[2] coefficients of the largest posterior, by Newton's method with halved steps, and [2, 2] its curvature."""
    precision = np.diag([0.0, PRECISION])
    mean = wins.mean()
    theta = np.array([math.log(mean / (1 - mean)), 0.0])
    loss = _loss(theta, wins, inputs)
    for _ in range(_STEPS):
        chance = _sigmoid(inputs @ theta)
        gradient = inputs.T @ (chance - wins) + precision @ theta
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs + precision
        step = np.linalg.solve(curvature, gradient)
        if np.abs(step).max() < _TOLERANCE:
            break
        while (shorter := _loss(theta - step, wins, inputs)) > loss + 1e-12 * abs(loss):
            step = step / 2
        theta, loss = theta - step, shorter
    return theta, curvature


def _loss(theta: Floats, wins: Floats, inputs: Floats) -> float:
    """Negative log-posterior, nats."""
    logits = inputs @ theta
    return float((np.logaddexp(0, logits) - wins * logits).sum() + PRECISION * theta[1] ** 2 / 2)


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


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
