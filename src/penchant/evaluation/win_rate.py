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
from penchant.intervals import critical_value, pseudo_interval

PRECISION = 0.1
"""Precision of the normal prior on phi around 0: a standard deviation of 3.2 in log-odds for any number of prompts."""

_TOLERANCE, _STEPS = 1e-10, 100


def length_controlled(values: Sequence[float], words: Sequence[int], rival_words: Sequence[int]) -> Estimate:
    """Win rate at equal lengths with a 95 % interval over prompts.

    The interval is that of a share whose sample is as large as gives theta's variance, by the model and by how the
    residuals differ from it (as ties do; the sandwich of White 1982).

    Args:
        values: [N] 1 for a win, 0 for a loss, 1/2 for a tie.
        words, rival_words: [N] lengths in words of our answers and the rival's.
    """
    wins, difference = (
        np.asarray(values, np.float64),
        np.asarray(words, np.float64) - np.asarray(rival_words, np.float64),
    )
    n = len(wins)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    difference_std = float(difference.std())
    longer = np.tanh(difference / difference_std) if difference_std > 0 else np.zeros(n)
    raw = float(wins.mean())
    if raw in (0.0, 1.0):  # No theta is large enough.
        rate, sample, square = raw, float(n), raw
    else:
        rate, sample, square = _controlled(wins, np.stack([np.ones(n), longer], 1))
    freedom = n - (2 if difference_std > 0 else 1)
    if freedom < 1:
        return Estimate(rate, math.nan, math.nan, n)
    low, high = pseudo_interval(rate, square, sample, critical_value(0.05, freedom))
    return Estimate(rate, low, high, n)


def _controlled(wins: Floats, inputs: Floats) -> tuple[float, float, float]:
    """Rate at equal lengths, the number of independent prompts of equal variance, and their mean square.

    Args:
        wins: [N] values, not all 0 and not all 1.
        inputs: [N, 2] ones, and tanh of the scaled differences of length.
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
    """[2] coefficients of the largest posterior and [2, 2] curvature, by Newton's method; [N] wins, [N, 2] inputs."""
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
    """Negative log-posterior of [2] coefficients in nats, given [N] wins and [N, 2] inputs."""
    logits = inputs @ theta
    return float((np.logaddexp(0, logits) - wins * logits).sum() + PRECISION * theta[1] ** 2 / 2)


def _sigmoid(logits: Floats) -> Floats:
    """[N] probabilities of [N] logits."""
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True)
class WinRate:
    """A judge's verdicts on N prompts.

    Attributes:
        rate: share of prompts won, a tie counting half; the interval is over prompts.
        length_controlled: the rate at equal lengths; see `length_controlled`.
        wins, losses, ties: numbers of prompts; a disagreement of the two orders is a tie.
        agreement: share of prompts whose two orders agree, among those judged in both; None without any.
        failed: number of verdicts (two per prompt) that the judge did not give; their prompts count as ties.
        values: [N] 1, 1/2 or 0.
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
    """A table of win rates for the report, from model -> `WinRate.to_json`; empty without any."""
    counts = ("wins", "losses", "ties", "failed")
    rows = [
        (name, show(row["rate"]), show(row["length_controlled"]), *(str(row[key]) for key in counts))
        for name, row in judged.items()
    ]
    note = "Each pair is shown in both orders; a tie is also where the orders disagree or a verdict failed."
    table = Table(f"By the judge, against {against}", ("", "win rate", "at equal lengths", *counts), rows, note)
    return [table] if rows else []


def win_rate(judge: Judge, prompts: Sequence[Text], ours: Sequence[Text], theirs: Sequence[Text]) -> WinRate:
    """Win rate by verdicts on every pair of responses in both orders."""
    sides = (ours, theirs)
    one = judge.compare(prompts, ours, theirs)
    two = judge.compare(prompts, theirs, ours)
    values = tuple(_value(verdict, swapped_verdict) for verdict, swapped_verdict in zip(one, two, strict=True))
    # A tie that stands for a failed verdict does not count for the judge's agreement with itself.
    judged = [pair for pair in zip(one, two, strict=True) if not any(verdict.failed for verdict in pair)]
    agreeing = sum(verdict.side == _SWAPPED_SIDES[swapped_verdict.side] for verdict, swapped_verdict in judged)
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


_SWAPPED_SIDES = {"first": "second", "second": "first", "tie": "tie"}


def _value(verdict: Verdict, swapped_verdict: Verdict) -> float:
    """1, 1/2 or 0 for the first side, which wins only if both orders name it."""
    if verdict.side != _SWAPPED_SIDES[swapped_verdict.side]:
        return 0.5
    return {"first": 1.0, "tie": 0.5, "second": 0.0}[verdict.side]
