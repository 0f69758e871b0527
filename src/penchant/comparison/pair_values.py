"""Each held-out group's own numbers, which a comparison pairs between models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from penchant.data.groups import PreferenceGroup, as_text
from penchant.evaluation.orders import ORDER_METRICS, known_worth, order_metrics
from penchant.evaluation.preferences import ScoredGroup
from penchant.evaluation.statistics import roc_auc

Values = dict[str, dict[str, float]]
"""Metric -> what was measured, a held-out group or a fresh sample -> value."""


def names(groups: Sequence[PreferenceGroup], kept: Sequence[PreferenceGroup]) -> list[str]:
    """A name for each kept group: its place among all, in whose order they are. Ids are the data's and may repeat."""
    places = iter(enumerate(groups))
    return [next(name_of_group(i) for i, group in places if group is each) for each in kept]


def name_of_group(place: int) -> str:
    return f"group {place}"


def is_pooled(metric: str) -> bool:
    """Whether it is of all pairs at once: no mean over groups, so there is nothing to pair by prompt."""
    return metric.endswith("auc")


def first_of_prompt(groups: Sequence[PreferenceGroup]) -> dict[str, str]:
    """Each group's name -> that of the first group of its prompt."""
    first: dict[str, str] = {}
    return {
        name_of_group(place): first.setdefault(as_text(group.prompt), name_of_group(place))
        for place, group in enumerate(groups)
    }


def pair_values(names: Sequence[str], scored: Sequence[ScoredGroup]) -> tuple[dict[str, float], Values]:
    """Pooled AUCs, and each group's accuracy and margin by every score; groups without a pair are left out."""
    metrics: dict[str, float] = {}
    values: Values = {}
    measured = {name: each for name, each in zip(names, scored, strict=True) if each.group.pairs}
    for prefix, of in _SCORES.items():
        positive, negative = [], []
        right: dict[str, float] = {}
        margin: dict[str, float] = {}
        for name, each in measured.items():
            numbers = of(each)
            pairs = [(numbers[i], numbers[j]) for i, j in each.group.pairs]
            positive += [i for i, _ in pairs]
            negative += [j for _, j in pairs]
            right[name] = sum(i > j for i, j in pairs) / len(pairs)
            margin[name] = sum(i - j for i, j in pairs) / len(pairs)
        values[f"{prefix}accuracy"] = right
        if prefix != "length_":
            values[f"{prefix}margin"] = margin
            metrics[f"{prefix}auc"] = roc_auc(positive, negative)
            values.update({f"{prefix}{name}": found for name, found in _orders(measured, of).items()})
    return metrics, values


def _orders(measured: dict[str, ScoredGroup], of: Callable[[ScoredGroup], Sequence[float]]) -> Values:
    """Of the groups whose whole order is known; nothing where there are none."""
    found: Values = {}
    for name, each in measured.items():
        worth = known_worth(each.group)
        if worth is not None:
            numbers = order_metrics(worth, np.array(of(each), dtype=np.float64))
            for metric, value in zip(ORDER_METRICS, numbers, strict=True):
                found.setdefault(metric, {})[name] = value
    return found


def _ratio(each: ScoredGroup) -> list[float]:
    references = each.reference_log_probs or ()
    return [own - other for own, other in zip(each.log_probs, references, strict=True)]


_SCORES: dict[str, Callable[[ScoredGroup], Sequence[float]]] = {
    "": _ratio,
    "log_prob_": lambda each: each.log_probs,
    "mean_log_prob_": lambda each: [own / n for own, n in zip(each.log_probs, each.tokens, strict=True)],
    "length_": lambda each: each.tokens,
}
