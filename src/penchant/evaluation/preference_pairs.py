"""All (better, worse) pairs of many groups in one row: how scores order them, and the calibration of their margins.

Calibration is that of the preference probabilities that implicit rewards imply. Legend: G groups that have a pair, C
candidates of all groups in one row, P pairs of all groups in one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penchant.data.groups import PreferenceGroup, as_text
from penchant.evaluation.one_preferred import OnePreferred
from penchant.evaluation.orders import Orders
from penchant.evaluation.statistics import (
    Estimate,
    Floats,
    Ints,
    bootstrap_auc,
    bootstrap_mean,
    mean_of_shares,
    resampled_mean,
)

_BINS = 10
_SIMULATIONS = 200
"""Number of simulated outcome sets; the standard error of the simulated mean is then below a tenth of it."""


@dataclass(frozen=True)
class CalibrationBin:
    """Statistics of pairs with similar predicted probability.

    Attributes:
        predicted: mean probability that the response with the higher reward is the preferred one.
        observed: share of pairs in which it is.
    """

    predicted: float
    observed: Estimate


@dataclass(frozen=True)
class Calibration:
    """Bradley-Terry probabilities of rewards against the data, in bins of equal count.

    Attributes:
        beta: scale of the rewards.
        bins: bins in order of rising confidence.
        expected_calibration_error: mean over pairs of |predicted - observed| of the pair's bin (Guo et al. 2017,
            arXiv 1706.04599, equation 3). It has no interval: resampling biases it upwards.
        calibrated_error: mean of this error over simulations whose outcomes follow the predicted probabilities: the
            error that chance alone gives. NaN without pairs.
    """

    beta: float
    bins: tuple[CalibrationBin, ...]
    expected_calibration_error: Estimate
    calibrated_error: float

    @property
    def definition(self) -> str:
        return (
            f"sigmoid(|reward difference|), reward = {self.beta:g} x log-ratio, against how often the response with "
            f"the higher reward is preferred (equal rewards: half), over pairs in {len(self.bins)} bins of equal count"
        )

    def to_json(self) -> dict[str, Any]:
        bins = [{"predicted": row.predicted, "observed": row.observed.to_json()} for row in self.bins]
        error = self.expected_calibration_error.to_json()
        chance = None if math.isnan(self.calibrated_error) else self.calibrated_error
        return {"beta": self.beta, "expected_calibration_error": error, "calibrated_error": chance, "bins": bins}


def calibrate(log_ratio_margins: Floats, clusters: Ints, beta: float, *, seed: int) -> Calibration:
    """Calibration of sigmoid(|beta h|) as the probability that the response with the higher score is preferred.

    Args:
        log_ratio_margins: [P] h, chosen minus rejected log-ratio, nats.
        clusters: [P] integers; pairs with equal ones are not independent.
    """
    predicted = 1 / (1 + np.exp(-np.abs(beta * log_ratio_margins)))
    won = np.where(log_ratio_margins == 0, 0.5, log_ratio_margins > 0)
    parts = [part for part in np.array_split(np.lexsort((clusters, predicted)), _BINS) if len(part)]
    shared = _shared_outcomes(predicted, won)
    bins = [
        CalibrationBin(
            float(predicted[part].mean()),
            # Not `bootstrap_mean`: a bin of equally confident pairs, which share one rate, would be certain of it.
            mean_of_shares(shared[part], clusters[part]),
        )
        for part in parts
    ]
    generator = np.random.default_rng(seed)
    # Draws belong to pairs by their rank, so that the order of the rows does not change them.
    tied = log_ratio_margins == 0
    ranks = np.argsort(np.lexsort((tied, predicted)))
    errors = []
    for _ in range(_SIMULATIONS):
        outcomes = np.where(tied, 0.5, generator.random(len(predicted))[ranks] < predicted)
        errors.append(_error(predicted, _shared_outcomes(predicted, outcomes), parts))
    n = len(predicted)
    error = Estimate(_error(predicted, shared, parts), math.nan, math.nan, n)
    return Calibration(beta, tuple(bins), error, float(np.mean(errors)))


def _shared_outcomes(predicted: Floats, won: Floats) -> Floats:
    """[P] outcomes averaged over pairs of equal probability, so that a bin's edge may fall between them."""
    _, level, count = np.unique(predicted, return_inverse=True, return_counts=True)
    return (np.bincount(level, weights=won) / count)[level] if len(level) else won


def _error(predicted: Floats, observed: Floats, parts: Sequence[Ints]) -> float:
    """Expected calibration error of [P] predictions and [P] outcomes in bins of pair indices; NaN without pairs."""
    gaps = [len(part) * abs(float(predicted[part].mean() - observed[part].mean())) for part in parts]
    return sum(gaps) / len(predicted) if len(predicted) else math.nan


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
