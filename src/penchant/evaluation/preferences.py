"""Held-out preference metrics from candidates' log-probs; no model is needed here.

Legend: G groups that have a pair, C candidates of all groups in one row, P pairs of all groups in one row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.data.groups import PreferenceGroup, as_text
from penchant.errors import ModelError
from penchant.evaluation.calibration import Calibration, calibrate
from penchant.evaluation.files import write_atomically
from penchant.evaluation.orders import ORDER_METRICS, ORDERED, Orders
from penchant.evaluation.statistics import Estimate, Floats, Ints, bootstrap_auc, bootstrap_mean

PairValues = Floats | NDArray[np.bool_]


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
class SourceMetrics:
    """The main metrics of one source's groups."""

    groups: int
    accuracy: Estimate
    margin: Estimate


@dataclass(frozen=True)
class PreferenceReport:
    """How well a model prefers what people preferred.

    Attributes:
        groups: groups with at least one pair; these are measured.
        groups_without_pairs: groups where nothing is known or all is tied; these are left out.
        pairs: (better, worse) pairs of the measured groups.
        prompts: distinct prompts of the measured groups; the intervals resample these.
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

    Where groups of more than two candidates have a known order, also top-1, NDCG and Kendall's tau of it.

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
    measured = [each for each in scored if each.group.pairs]
    pairs = _Pairs.of(measured, resamples, seed)
    log_probs = _row([each.log_probs for each in measured])
    tokens = _row([each.tokens for each in measured])
    summed = pairs.compare(log_probs)
    rewards, main, calibration = log_probs, summed, None
    if True in referenced:
        rewards = log_probs - _row([each.reference_log_probs or () for each in measured])
        main, calibration = pairs.compare(rewards), pairs.calibrate(rewards, beta)
    metrics = {
        **main,
        "ties": pairs.mean(pairs.margins(rewards) == 0),
        "length_accuracy": pairs.mean(pairs.margins(tokens) > 0),
        **{f"log_prob_{name}": estimate for name, estimate in summed.items()},
        **{f"mean_log_prob_{name}": estimate for name, estimate in pairs.compare(log_probs / tokens).items()},
    }
    return PreferenceReport(
        groups=len(measured),
        groups_without_pairs=len(scored) - len(measured),
        pairs=len(pairs.group),
        prompts=len(set(pairs.prompt.tolist())),
        metrics=metrics,
        by_source=_by_source(measured, pairs, pairs.margins(rewards)),
        calibration=calibration,
        definitions=_definitions(calibration, ordered=bool(pairs.orders.worth)),
    )


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


@dataclass(frozen=True)
class _Pairs:
    """All pairs in one row.

    Attributes:
        chosen, rejected: [P] positions in the row of candidates.
        group: [P] the pair's group.
        prompt: [G] the group's prompt; numbered in the order of the prompts' texts, so that the order of the groups
            does not change the resamples.
    """

    chosen: Ints
    rejected: Ints
    group: Ints
    prompt: Ints
    orders: Orders
    resamples: int
    seed: int

    @classmethod
    def of(cls, scored: Sequence[ScoredGroup], resamples: int, seed: int) -> _Pairs:
        rows, start = [], 0
        for g, each in enumerate(scored):
            rows += [(start + better, start + worse, g) for better, worse in each.group.pairs]
            start += len(each.tokens)
        chosen, rejected, group = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        prompts = [as_text(each.group.prompt) for each in scored]
        number = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
        prompt = np.array([number[prompt] for prompt in prompts], dtype=np.int64)
        orders = Orders.of([each.group for each in scored], prompt, resamples, seed)
        return cls(chosen, rejected, group, prompt, orders, resamples, seed)

    def margins(self, scores: Floats) -> Floats:
        """[P] chosen minus rejected of [C] scores."""
        return scores[self.chosen] - scores[self.rejected]

    def group_means(self, values: PairValues) -> Floats:
        """[G] means of [P] values over each group's pairs."""
        return np.bincount(self.group, weights=values) / np.bincount(self.group)

    def mean(self, values: PairValues) -> Estimate:
        """Mean over groups of [P] values."""
        return bootstrap_mean(self.group_means(values), self.prompt, resamples=self.resamples, seed=self.seed)

    def compare(self, scores: Floats) -> dict[str, Estimate]:
        """How [C] scores order the pairs, and whole groups where their order is known."""
        margins = self.margins(scores)
        pools = scores[self.chosen], scores[self.rejected]
        auc = bootstrap_auc(*pools, self.prompt[self.group], resamples=self.resamples, seed=self.seed)
        of_pairs = {"accuracy": self.mean(margins > 0), "auc": auc, "margin": self.mean(margins)}
        return {**of_pairs, **self.orders.compare(scores)}

    def calibrate(self, rewards: Floats, beta: float) -> Calibration:
        """Whether [C] log-ratios times beta are calibrated."""
        clusters = self.prompt[self.group]
        return calibrate(self.margins(rewards), clusters, beta, resamples=self.resamples, seed=self.seed)


def _row(values: Sequence[Sequence[float]]) -> Floats:
    """[C] the candidates of all groups in one row."""
    return np.array([value for each in values for value in each], dtype=np.float64)


def _by_source(scored: Sequence[ScoredGroup], pairs: _Pairs, margins: Floats) -> dict[str, SourceMetrics]:
    names = np.array([each.group.source or "(no source)" for each in scored])
    correct, margin = pairs.group_means(margins > 0), pairs.group_means(margins)
    found = sorted(set(names.tolist()))
    metrics = {}
    for name in found if len(found) > 1 else ():
        of = names == name
        accuracy, mean_margin = (
            bootstrap_mean(values[of], pairs.prompt[of], resamples=pairs.resamples, seed=pairs.seed)
            for values in (correct, margin)
        )
        metrics[name] = SourceMetrics(int(of.sum()), accuracy, mean_margin)
    return metrics


def _definitions(calibration: Calibration | None, *, ordered: bool) -> dict[str, str]:
    """One line for each metric; a calibration comes with a reference, and then the main metrics are of rewards."""
    reward = ("log-ratio log pi(y|x) - log ref(y|x)", "nats, not multiplied by beta")
    summed = ("summed log-prob", "nats")
    main = summed if calibration is None else reward
    mean = ("log-prob per token, end-of-turn included", "nats per token")
    lines = {}
    for prefix, (score, unit) in {"": main, "log_prob_": summed, "mean_log_prob_": mean}.items():
        lines[f"{prefix}accuracy"] = f"share of pairs whose preferred response has the higher {score} (a tie is wrong)"
        lines[f"{prefix}auc"] = f"ROC-AUC of {score}: preferred against other responses of all prompts (a tie is half)"
        lines[f"{prefix}margin"] = f"{score}: preferred minus other response; {unit}"
        if not prefix:
            lines["ties"] = f"share of pairs with exactly equal {score}"
            lines["length_accuracy"] = "share of pairs whose preferred response has more tokens (a tie is wrong)"
        if ordered:
            lines |= {f"{prefix}{name}": line.format(score=score) for name, line in ORDER_METRICS.items()}
    for name, line in lines.items():
        averaged = "pooled over pairs" if name.endswith("auc") else "mean over a group’s pairs, then over groups"
        lines[name] = f"{line}; {f'mean {ORDERED}' if name.endswith(tuple(ORDER_METRICS)) else averaged}"
    return lines if calibration is None else {**lines, "calibration": calibration.definition}


def _require_finite(scored: Sequence[ScoredGroup]) -> None:
    for each in scored:
        for name in ("log_probs", "reference_log_probs"):
            for k, value in enumerate(getattr(each, name) or ()):
                if not math.isfinite(value):
                    raise ModelError(
                        f"{name.replace('_', ' ')[:-1]} of candidate {k} is {value}, expected a finite number",
                        where=f"group {each.group.id}",
                        fix="score in float32 (--dtype float32); if it stays so, the model's weights are damaged",
                    )
