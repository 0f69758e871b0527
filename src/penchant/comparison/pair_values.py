"""Values of every held-out group, which a comparison pairs between models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from penchant.data.groups import PreferenceGroup, as_text
from penchant.evaluation.orders import ORDER_METRICS, known_worth, order_metrics
from penchant.evaluation.preferences import ScoredGroup
from penchant.evaluation.statistics import roc_auc

Values = dict[str, dict[str, float]]
"""Metric -> name of a held-out group or a fresh sample -> value."""


def names(groups: Sequence[PreferenceGroup], subset: Sequence[PreferenceGroup]) -> list[str]:
    """Names of a subset of groups, by their index among all groups; ids in the data may repeat."""
    entries = iter(enumerate(groups))
    return [next(name_of_group(i) for i, group in entries if group is group_of_subset) for group_of_subset in subset]


def name_of_group(index: int) -> str:
    """The name of a group in tables of values: its index in the held-out data."""
    return f"group {index}"


def is_pooled(metric: str) -> bool:
    """Whether a metric is computed over all pairs at once, so that it has no values by group."""
    return metric.endswith("auc")


def first_of_prompt(groups: Sequence[PreferenceGroup]) -> dict[str, str]:
    """Name of a group -> name of the first group of its prompt."""
    name_by_prompt: dict[str, str] = {}
    return {
        name_of_group(index): name_by_prompt.setdefault(as_text(group.prompt), name_of_group(index))
        for index, group in enumerate(groups)
    }


def pair_values(names: Sequence[str], scored: Sequence[ScoredGroup]) -> tuple[dict[str, float], Values]:
    """Pooled AUCs, and accuracy and margin of every group by every score; groups without a pair are left out."""
    metrics: dict[str, float] = {}
    values: Values = {}
    entries = {name: entry for name, entry in zip(names, scored, strict=True) if entry.group.pairs}
    for prefix, score_of in _SCORES.items():
        positive, negative = [], []
        right: dict[str, float] = {}
        margin: dict[str, float] = {}
        for name, entry in entries.items():
            numbers = score_of(entry)
            pairs = [(numbers[i], numbers[j]) for i, j in entry.group.pairs]
            positive += [i for i, _ in pairs]
            negative += [j for _, j in pairs]
            right[name] = sum(i > j for i, j in pairs) / len(pairs)
            margin[name] = sum(i - j for i, j in pairs) / len(pairs)
        values[f"{prefix}accuracy"] = right
        if prefix != "length_":
            values[f"{prefix}margin"] = margin
            metrics[f"{prefix}auc"] = roc_auc(positive, negative)
            values.update(
                {f"{prefix}{name}": numbers_by_group for name, numbers_by_group in _orders(entries, score_of).items()}
            )
    return metrics, values


def _orders(entries: dict[str, ScoredGroup], score_of: Callable[[ScoredGroup], Sequence[float]]) -> Values:
    """Metrics of orders for the groups whose whole order is known."""
    values: Values = {}
    for name, entry in entries.items():
        worth = known_worth(entry.group)
        if worth is not None:
            numbers = order_metrics(worth, np.array(score_of(entry), dtype=np.float64))
            for metric, value in zip(ORDER_METRICS, numbers, strict=True):
                values.setdefault(metric, {})[name] = value
    return values


def _ratio(entry: ScoredGroup) -> list[float]:
    references = entry.reference_log_probs or ()
    return [policy - reference for policy, reference in zip(entry.log_probs, references, strict=True)]


_SCORES: dict[str, Callable[[ScoredGroup], Sequence[float]]] = {
    "": _ratio,
    "log_prob_": lambda entry: entry.log_probs,
    "mean_log_prob_": lambda entry: [log_prob / n for log_prob, n in zip(entry.log_probs, entry.tokens, strict=True)],
    "length_": lambda entry: entry.tokens,
}
