"""Held-out preference metrics from candidates' log-probs, and their tables; no model is needed here.

Legend: G groups that have a pair, C candidates of all groups in one row, P pairs of all groups in one row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.orders import LOG_PROB, LOG_RATIO, MEAN_LOG_PROB, definitions
from penchant.evaluation.preference_pairs import (
    Calibration,
    PreferencePairs,
    SourceMetrics,
    flatten_groups,
    metrics_by_source,
    prompt_numbers,
)
from penchant.evaluation.statistics import Estimate, Floats, bootstrap_ratio, require_finite
from penchant.storage.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

LIKELIHOOD = ("eval_loss", "perplexity")


def likelihood(
    groups: Sequence[PreferenceGroup],
    log_probs: Sequence[Sequence[float]],
    tokens: Sequence[Sequence[int]],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Mean token loss in nats and perplexity of the responses that nothing is preferred to; empty without any.

    Responses labelled undesirable are left out too, as in supervised fine-tuning.

    Args:
        log_probs, tokens: [G][K] summed log-probs in nats, and numbers of tokens.
        resamples, seed: of the bootstrap over prompts.
    """
    prompts = prompt_numbers(groups).tolist()
    nll, counts, clusters = [], [], []
    for g, group in enumerate(groups):
        for k in learnt_candidates(group):
            nll.append(-log_probs[g][k])
            counts.append(tokens[g][k])
            clusters.append(prompts[g])
    if not nll:
        return {}
    loss = bootstrap_ratio(nll, counts, clusters, resamples=resamples, seed=seed)
    return {"eval_loss": loss, "perplexity": Estimate(_exp(loss.value), _exp(loss.low), _exp(loss.high), loss.n)}


def learnt_candidates(group: PreferenceGroup) -> list[int]:
    """Indices of the candidates that nothing is preferred to and that are not labelled undesirable."""
    worse = {worse for _, worse in group.pairs}
    labels = group.labels or (True,) * len(group.candidates)
    return [k for k in range(len(group.candidates)) if k not in worse and labels[k]]


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))


@dataclass(frozen=True)
class ScoredGroup:
    """A group with the log-probs of its K candidates.

    Attributes:
        log_probs: K summed log-probs under the policy, nats.
        tokens: K counts of the tokens in them, end-of-turn included.
        reference_log_probs: K summed log-probs under the reference; None without a reference.
        prompt_tokens: number of tokens of the prompt.
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
    """Agreement of a model's preferences with the data's.

    Attributes:
        groups: number of groups with at least one pair, which are measured.
        groups_without_pairs: number of groups without a pair; only `eval_loss` and `perplexity` may include them.
        pairs: number of (better, worse) pairs of the measured groups.
        prompts: number of distinct prompts of the measured groups; the intervals are over these.
        metrics: name -> estimate; `definitions` has their meanings.
        by_source: main metrics of every source; empty if there is only one.
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
            name: {"groups": source.groups, "accuracy": source.accuracy.to_json(), "margin": source.margin.to_json()}
            for name, source in self.by_source.items()
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

    Groups of more than two candidates with a known order also have top-1, NDCG and Kendall's tau; groups with one
    candidate preferred to all others have its hit ratio, NDCG and reciprocal rank. Responses without alternatives have
    a loss and a perplexity.

    A group's value is the mean over its pairs, and a metric is the mean over groups of any K; the groups' `weight`
    belongs to the loss and is ignored here. Without a reference the main metrics are those of the log-probs.

    Args:
        scored: groups that all have reference log-probs, or all have none.
        beta: scale of the implicit reward, used for `calibration` only.
        resamples, seed: of the bootstrap.

    Raises:
        ModelError: a log-prob is not finite.
    """
    _require_finite(scored)
    referenced = {row.reference_log_probs is not None for row in scored}
    if len(referenced) > 1:
        raise ValueError("some groups have reference log-probs and some do not")
    paired_rows = [row for row in scored if row.group.pairs]
    pairs = PreferencePairs.from_groups([row.group for row in paired_rows], resamples, seed)
    log_probs = flatten_groups([row.log_probs for row in paired_rows])
    tokens = flatten_groups([row.tokens for row in paired_rows])
    summed = pairs.compare(log_probs)
    rewards, main, calibration = log_probs, summed, None
    if True in referenced:
        rewards = log_probs - flatten_groups([row.reference_log_probs or () for row in paired_rows])
        main, calibration = pairs.compare(rewards), pairs.calibrate(rewards, beta)
    metrics = {
        **main,
        **ties_and_length(pairs, rewards, tokens),
        **{f"log_prob_{name}": estimate for name, estimate in summed.items()},
        **{f"mean_log_prob_{name}": estimate for name, estimate in pairs.compare(log_probs / tokens).items()},
        **_likelihood([row for row in scored if not paired_rows or len(row.tokens) == 1], resamples, seed),
    }
    scores = {
        "": LOG_PROB if calibration is None else LOG_RATIO,
        "log_prob_": LOG_PROB,
        "mean_log_prob_": MEAN_LOG_PROB,
    }
    groups, unpaired = [row.group for row in paired_rows], len(scored) - len(paired_rows)
    return pair_report(groups, unpaired, pairs, rewards, metrics, definitions(metrics, scores), calibration)


def ties_and_length(pairs: PreferencePairs, scores: Floats, tokens: Floats) -> dict[str, Estimate]:
    """The share of pairs with equal scores, and how often the longer candidate is the preferred one.

    Args:
        scores, tokens: [C] scores and token counts of the candidates.
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
        unpaired: number of further groups without pairs.
        scores: [C] scores of the candidates, which order the pairs.
        lines: definitions of the metrics by name.
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
    """The report with loss and perplexity of the responses of all groups that supervised fine-tuning would learn."""
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
    for row in scored:
        candidates: list[dict[str, float | int]] = [
            {"log_prob": log_prob, "tokens": tokens} for log_prob, tokens in zip(row.log_probs, row.tokens, strict=True)
        ]
        for candidate, log_prob in zip(candidates, row.reference_log_probs or (), strict=False):
            candidate["reference_log_prob"] = log_prob
        line = {"id": row.group.id, "prompt_tokens": row.prompt_tokens, "candidates": candidates}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def _require_finite(scored: Sequence[ScoredGroup]) -> None:
    for row in scored:
        for name in ("log_probs", "reference_log_probs"):
            noun = name.replace("_", " ").removesuffix("s")
            require_finite(getattr(row, name) or (), f"{noun} of candidate", f"group {row.group.id}")


def render(report: PreferenceReport) -> Group:
    """The report as tables, with each metric's definition below."""
    from rich.console import Group

    return Group(*_parts(report))


def _parts(report: PreferenceReport) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    if report.groups:
        left_out = f"; {report.groups_without_pairs} without a pair left out" if report.groups_without_pairs else ""
        yield Text(f"{report.pairs} pairs in {report.groups} groups of {report.prompts} prompts{left_out}")
    else:
        yield Text(f"{report.groups_without_pairs} groups, none with a preferred response and another")
    metrics = Table("metric", "value", "95 % interval", "n")
    names = [name for name, estimate in report.metrics.items() if estimate.n]
    for name in names:
        metrics.add_row(Text(name), *_cells(report.metrics[name]))
    yield metrics
    if report.by_source:
        sources = Table("source", "groups", "accuracy", "95 % interval", "margin", "95 % interval")
        for source, row in report.by_source.items():
            sources.add_row(Text(source), str(row.groups), *_cells(row.accuracy)[:2], *_cells(row.margin)[:2])
        yield sources
    if report.calibration is not None and report.calibration.bins:
        yield from _calibration_parts(report.calibration)
    yield Text("The 95 % intervals are over prompts.")
    for name in names:
        yield Text.assemble((name, "bold"), f": {report.definitions[name]}")
    if report.calibration is not None and report.calibration.bins:
        yield Text.assemble(("calibration", "bold"), f": {report.calibration.definition}")


def _calibration_parts(calibration: Calibration) -> Iterator[RenderableType]:
    from rich.table import Table
    from rich.text import Text

    bins = Table("predicted", "observed", "95 % interval", "pairs", title="calibration")
    for calibration_bin in calibration.bins:
        bins.add_row(f"{calibration_bin.predicted:.4f}", *_cells(calibration_bin.observed))
    yield bins
    error = calibration.expected_calibration_error
    chance = f"rewards with true probabilities: {calibration.calibrated_error:.4f}"
    yield Text(f"expected calibration error {error.value:.4f} (n = {error.n} pairs; {chance})")


def _cells(estimate: Estimate) -> tuple[str, str, str]:
    """Table cells of an estimate: its value, interval and n."""
    value = "none" if math.isnan(estimate.value) else f"{estimate.value:.4f}"
    interval = "none" if math.isnan(estimate.low) else f"[{estimate.low:.4f}, {estimate.high:.4f}]"
    return value, interval, str(estimate.n)
