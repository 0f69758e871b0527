"""All (better, worse) pairs of many groups in one row, and metrics of how scores order them.

Legend: G groups that have a pair, C candidates of all groups in one row, P pairs of all groups in one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penchant.data.groups import PreferenceGroup, as_text
from penchant.evaluation.calibration import Calibration, calibrate
from penchant.evaluation.one_preferred import OnePreferred
from penchant.evaluation.orders import Orders
from penchant.evaluation.statistics import Estimate, Floats, Ints, bootstrap_auc, bootstrap_mean, resampled_mean

PairValues = Floats | NDArray[np.bool_]


@dataclass(frozen=True)
class SourceMetrics:
    """The main metrics of one source's groups."""

    groups: int
    accuracy: Estimate
    margin: Estimate


@dataclass(frozen=True)
class PreferencePairs:
    """All pairs of many groups in one row.

    Attributes:
        chosen, rejected: [P] positions in the row of candidates.
        group: [P] index of the pair's group.
        orders, choices: groups whose whole order is known, and groups with one candidate preferred to all others.
        prompt: [G] number of the group's prompt in the order of the prompts' texts, so that the order of the groups
            does not change the resamples.
    """

    chosen: Ints
    rejected: Ints
    group: Ints
    prompt: Ints
    orders: Orders
    choices: OnePreferred
    resamples: int
    seed: int

    @classmethod
    def from_groups(cls, groups: Sequence[PreferenceGroup], resamples: int, seed: int) -> PreferencePairs:
        """The pairs of groups, all of which have pairs."""
        rows, start = [], 0
        for g, group in enumerate(groups):
            rows += [(start + better, start + worse, g) for better, worse in group.pairs]
            start += len(group.candidates)
        chosen, rejected, numbers = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        prompt = prompt_numbers(groups)
        orders = Orders.from_groups(groups, prompt, resamples, seed)
        choices = OnePreferred.from_groups(groups, prompt, resamples, seed)
        return cls(chosen, rejected, numbers, prompt, orders, choices, resamples, seed)

    def margins(self, scores: Floats) -> Floats:
        """[P] chosen minus rejected of [C] scores."""
        return scores[self.chosen] - scores[self.rejected]

    def group_means(self, values: PairValues) -> Floats:
        """[G] means of [P] values over each group's pairs."""
        return np.bincount(self.group, weights=values) / np.bincount(self.group)

    def mean(self, values: PairValues) -> Estimate:
        """Mean over groups of [P] values in [0, 1]."""
        return bootstrap_mean(self.group_means(values), self.prompt, resamples=self.resamples, seed=self.seed)

    def mean_margin(self, margins: Floats) -> Estimate:
        """Mean over groups of [P] margins; margins that are all 0 are not taken for shares."""
        return resampled_mean(self.group_means(margins), self.prompt, resamples=self.resamples, seed=self.seed)

    def compare(self, scores: Floats) -> dict[str, Estimate]:
        """Accuracy, AUC and margin of [C] scores over pairs, and rank metrics of groups with a known order."""
        margins = self.margins(scores)
        pools = scores[self.chosen], scores[self.rejected]
        auc = bootstrap_auc(*pools, self.prompt[self.group], resamples=self.resamples, seed=self.seed)
        of_pairs = {"accuracy": self.mean(margins > 0), "auc": auc, "margin": self.mean_margin(margins)}
        return {**of_pairs, **self.orders.compare(scores), **self.choices.compare(scores)}

    def calibrate(self, rewards: Floats, beta: float) -> Calibration:
        """Calibration of [C] log-ratios in nats times beta."""
        clusters = self.prompt[self.group]
        return calibrate(self.margins(rewards), clusters, beta, seed=self.seed)


def flatten_groups(values: Sequence[Sequence[float]]) -> Floats:
    """[C] values of all groups' candidates in one row, from [G][K]."""
    return np.array([value for group in values for value in group], dtype=np.float64)


def prompt_numbers(groups: Sequence[PreferenceGroup]) -> Ints:
    """[G] number of every group's prompt, in the order of the prompts' texts."""
    prompts = [as_text(group.prompt) for group in groups]
    numbers = {prompt: i for i, prompt in enumerate(sorted(set(prompts)))}
    return np.array([numbers[prompt] for prompt in prompts], dtype=np.int64)


def metrics_by_source(
    groups: Sequence[PreferenceGroup], pairs: PreferencePairs, margins: Floats
) -> dict[str, SourceMetrics]:
    """Main metrics of every source's groups from [P] margins; empty if there is only one source."""
    names = np.array([group.source or "(no source)" for group in groups])
    correct, margin = pairs.group_means(margins > 0), pairs.group_means(margins)
    sources = sorted(set(names.tolist()))
    metrics = {}
    for name in sources if len(sources) > 1 else ():
        groups_of_source = names == name
        accuracy, mean_margin = (
            estimate(
                values[groups_of_source], pairs.prompt[groups_of_source], resamples=pairs.resamples, seed=pairs.seed
            )
            for estimate, values in ((bootstrap_mean, correct), (resampled_mean, margin))
        )
        metrics[name] = SourceMetrics(int(groups_of_source.sum()), accuracy, mean_margin)
    return metrics
