"""Held-out preference metrics from candidates' log-probs; no model is needed here.

Legend: G groups that have a pair, C candidates of all groups in one row, P pairs of all groups in one row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup
from penchant.errors import ModelError
from penchant.evaluation.calibration import Calibration
from penchant.evaluation.files import write_atomically
from penchant.evaluation.likelihood import LIKELIHOOD, likelihood
from penchant.evaluation.metric_definitions import LOG_PROB, LOG_RATIO, MEAN_LOG_PROB, definitions
from penchant.evaluation.preference_pairs import PreferencePairs, SourceMetrics, metrics_by_source, row_of
from penchant.evaluation.statistics import Estimate, Floats


@dataclass(frozen=True)
class ScoredGroup:
    """A group and its K candidates' log-probs.

    Attributes:
        log_probs: K summed log-probs under the policy, nats.
        tokens: K counts of the tokens in them, end-of-turn included.
        reference_log_probs: K summed log-probs under the reference; None without a reference.
        prompt_tokens: tokens of the prompt.
    """

    group: PreferenceGroup
    log_probs: tuple[float, ...]
    tokens: tuple[int, ...]
    reference_log_probs: tuple[float, ...] | None
    prompt_tokens: int

    def __post_init__(self) -> None:
        k = len(self.group.candidates)
        for name in ("log_probs", "tokens", "reference_log_probs"):
            values = getattr(self, name)
            if values is not None and len(values) != k:
                raise ValueError(f"{k} candidates but {len(values)} {name}")
        if min(self.tokens) < 1:
            raise ValueError(f"tokens are {self.tokens}, expected at least 1 for each candidate")


@dataclass(frozen=True)
class PreferenceReport:
    """How well a model prefers what people preferred.

    Attributes:
        groups: groups with at least one pair; these are measured.
        groups_without_pairs: groups where nothing is known or all is tied; `eval_loss` and `perplexity` alone are of
            them, where they have one candidate or there are no others.
        pairs: (better, worse) pairs of the measured groups.
        prompts: distinct prompts of the measured groups; the intervals are over these.
        metrics: name -> estimate; `definitions` says what each is.
        by_source: main metrics for each source; empty where there is only one.
        calibration: None without a reference.
    """

    groups: int
    groups_without_pairs: int
    pairs: int
    prompts: int
    metrics: Mapping[str, Estimate]
    by_source: Mapping[str, SourceMetrics]
    calibration: Calibration | None
    definitions: Mapping[str, str]

    @property
    def accuracy(self) -> Estimate:
        return self.metrics["accuracy"]

    @property
    def auc(self) -> Estimate:
        return self.metrics["auc"]

    @property
    def margin(self) -> Estimate:
        return self.metrics["margin"]

    def to_json(self) -> dict[str, Any]:
        """Counts, ``metric -> {"value", "low", "high", "n"}``, breakdowns and definitions."""
        sources = {
            name: {"groups": of.groups, "accuracy": of.accuracy.to_json(), "margin": of.margin.to_json()}
            for name, of in self.by_source.items()
        }
        return {
            "groups": self.groups,
            "groups_without_pairs": self.groups_without_pairs,
            "pairs": self.pairs,
            "prompts": self.prompts,
            **{name: estimate.to_json() for name, estimate in self.metrics.items()},
            "by_source": sources,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
            "definitions": dict(self.definitions),
        }


def evaluate_preferences(
    scored: Sequence[ScoredGroup], *, beta: float = 0.1, resamples: int = 2000, seed: int = 0
) -> PreferenceReport:
    """Accuracy, AUC and margin of the model's preferences, each with a 95 % interval over prompts.

    Where groups of more than two candidates have a known order, also top-1, NDCG and Kendall's tau of it; where one of
    them is preferred to all others, its hit ratio, NDCG and reciprocal rank. Responses that stand alone have a loss
    and a perplexity.

    A group's value is the mean over its pairs, and a metric is the mean over groups whatever their K; the groups'
    `weight` is the loss's and counts nothing here. Without a reference the main metrics are those of the log-probs.

    Args:
        scored: all with reference log-probs, or none.
        beta: scale of the implicit reward, for `calibration` alone.
        resamples, seed: of the bootstrap.

    Raises:
        ModelError: a log-prob is not finite.
    """
    _require_finite(scored)
    referenced = {each.reference_log_probs is not None for each in scored}
    if len(referenced) > 1:
        raise ValueError("some groups have reference log-probs and some do not")
    measured = [row for row in scored if row.group.pairs]
    pairs = PreferencePairs.among([row.group for row in measured], resamples, seed)
    log_probs = row_of([row.log_probs for row in measured])
    tokens = row_of([row.tokens for row in measured])
    summed = pairs.compare(log_probs)
    rewards, main, calibration = log_probs, summed, None
    if True in referenced:
        rewards = log_probs - row_of([row.reference_log_probs or () for row in measured])
        main, calibration = pairs.compare(rewards), pairs.calibrate(rewards, beta)
    metrics = {
        **main,
        **ties_and_length(pairs, rewards, tokens),
        **{f"log_prob_{name}": estimate for name, estimate in summed.items()},
        **{f"mean_log_prob_{name}": estimate for name, estimate in pairs.compare(log_probs / tokens).items()},
        **_likelihood([row for row in scored if not measured or len(row.tokens) == 1], resamples, seed),
    }
    scores = {
        "": LOG_PROB if calibration is None else LOG_RATIO,
        "log_prob_": LOG_PROB,
        "mean_log_prob_": MEAN_LOG_PROB,
    }
    groups, unpaired = [row.group for row in measured], len(scored) - len(measured)
    return pair_report(groups, unpaired, pairs, rewards, metrics, definitions(metrics, scores), calibration)


def ties_and_length(pairs: PreferencePairs, scores: Floats, tokens: Floats) -> dict[str, Estimate]:
    """The share of pairs with equal scores, and how often the longer candidate is the preferred one.

    Args:
        scores, tokens: [C] of the candidates.
    """
    return {"ties": pairs.mean(pairs.margins(scores) == 0), "length_accuracy": pairs.mean(pairs.margins(tokens) > 0)}


def pair_report(
    groups: Sequence[PreferenceGroup],
    unpaired: int,
    pairs: PreferencePairs,
    scores: Floats,
    metrics: Mapping[str, Estimate],
    lines: Mapping[str, str],
    calibration: Calibration | None = None,
) -> PreferenceReport:
    """The report on groups that all have pairs.

    Args:
        unpaired: how many groups more have none.
        scores: [C] of the candidates, which order the pairs.
        lines: the metrics' definitions.
    """
    return PreferenceReport(
        groups=len(groups),
        groups_without_pairs=unpaired,
        pairs=len(pairs.group),
        prompts=len(set(pairs.prompt.tolist())),
        metrics=metrics,
        by_source=metrics_by_source(groups, pairs, pairs.margins(scores)),
        calibration=calibration,
        definitions=lines if calibration is None else {**lines, "calibration": calibration.definition},
    )


def with_likelihood(report: PreferenceReport, scored: Sequence[ScoredGroup]) -> PreferenceReport:
    """The report with loss and perplexity of all groups' responses that nothing is preferred to, as SFT learns them."""
    metrics = {**report.metrics, **_likelihood(scored)}
    lines = {**definitions(LIKELIHOOD, {"": LOG_PROB}), **report.definitions}
    return replace(report, metrics=metrics, definitions=lines)


def _likelihood(scored: Sequence[ScoredGroup], resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
    groups, log_probs = [row.group for row in scored], [row.log_probs for row in scored]
    return likelihood(groups, log_probs, [row.tokens for row in scored], resamples=resamples, seed=seed)


def write_per_example(scored: Sequence[ScoredGroup], path: Path) -> None:
    """Write a JSON line for each group: ``id``, ``prompt_tokens``, and each candidate's log-probs and tokens.

    Raises:
        ModelError: a log-prob is not finite.
        ConfigError: the file cannot be written.
    """
    _require_finite(scored)
    lines = []
    for each in scored:
        candidates: list[dict[str, float | int]] = [
            {"log_prob": log_prob, "tokens": tokens}
            for log_prob, tokens in zip(each.log_probs, each.tokens, strict=True)
        ]
        for candidate, log_prob in zip(candidates, each.reference_log_probs or (), strict=False):
            candidate["reference_log_prob"] = log_prob
        line = {"id": each.group.id, "prompt_tokens": each.prompt_tokens, "candidates": candidates}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def _require_finite(scored: Sequence[ScoredGroup]) -> None:
    for each in scored:
        for name in ("log_probs", "reference_log_probs"):
            for k, value in enumerate(getattr(each, name) or ()):
                if not math.isfinite(value):
                    raise ModelError(
                        f"{name.replace('_', ' ')[:-1]} of candidate {k} is {value}, expected a finite number",
                        where=f"group {each.group.id}",
                        fix="read it in training.dtype=float32; if it stays so, the model's weights are damaged",
                    )
