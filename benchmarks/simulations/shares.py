"""Coverage of 95 % intervals of shares, of win rates at equal lengths, and the self-improvement recipe's gate.

Legend: R runs, S seeds, N values (of prompts), C clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from penchant.evaluation.comparisons import across_seeds
from penchant.evaluation.seed_means import mean_over_seeds
from penchant.evaluation.statistics import mean_of_shares, proportion
from penchant.evaluation.win_rate import length_controlled
from penchant.recipes.self_improve.gate import choose_served

Floats = NDArray[np.float64]

SIZES = (20, 50, 200, 1000)
SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


def exact_coverage(n: int, shares: Floats) -> tuple[Floats, Floats]:
    """Probability that the interval of n yes-or-no values holds each share: of the percentile bootstrap, and of ours.

    The bootstrap's resamples of k successes are binomial, so that its percentiles are known without any resample.
    """
    counts = np.arange(n + 1)
    chance = stats.binom.pmf(counts, n, shares[:, None])
    resampled = [stats.binom.ppf(level, n, counts / n) / n for level in (0.025, 0.975)]
    estimates = [proportion(int(k), n) for k in counts]
    ours = np.array([(estimate.low, estimate.high) for estimate in estimates]).T
    covered = [
        (chance * ((low <= shares[:, None]) & (shares[:, None] <= high))).sum(1) for low, high in (resampled, ours)
    ]
    return covered[0], covered[1]


def clustered_coverage(clusters: int, correlation: float, share: float, runs: int, seed: int) -> float:
    """Share of runs whose interval holds the truth; one to seven values a cluster.

    Args:
        correlation: correlation of two values of a cluster, by a beta distribution of the clusters' own shares.
    """
    generator = np.random.default_rng(seed)
    covered = 0
    for _ in range(runs):
        cluster = np.repeat(np.arange(clusters), generator.integers(1, 8, clusters))
        strength = 1 / correlation - 1
        rates = generator.beta(share * strength, (1 - share) * strength, clusters)
        estimate = mean_of_shares(generator.random(len(cluster)) < rates[cluster], cluster)
        covered += estimate.low <= share <= estimate.high
    return covered / runs


@dataclass(frozen=True)
class SeededShare:
    """Yes-or-no values of a model trained with several seeds: 1 where a normal variable is above a threshold.

    Attributes:
        share: true share of ones, over all seeds and prompts.
        of_seeds, of_prompts: parts of the variable's variance that a seed's values share, and a prompt's.
    """

    share: float
    seeds: int
    prompts: int
    of_seeds: float
    of_prompts: float = 0.5

    def draw(self, generator: np.random.Generator) -> Floats:
        """[S, N] values."""
        shape = (self.seeds, self.prompts)
        values = (
            math.sqrt(self.of_seeds) * generator.standard_normal((self.seeds, 1))
            + math.sqrt(self.of_prompts) * generator.standard_normal(self.prompts)
            + math.sqrt(1 - self.of_seeds - self.of_prompts) * generator.standard_normal(shape)
        )
        return (values > stats.norm.isf(self.share)).astype(np.float64)

    def coverage(self, runs: int, seed: int) -> tuple[float, float]:
        """Share of runs whose interval holds the truth: of Student's t over the seeds' means, and of ours."""
        generator = np.random.default_rng(seed)
        covered = np.zeros(2)
        for _ in range(runs):
            values = self.draw(generator)
            estimates = across_seeds(values.mean(axis=1)), mean_over_seeds(values, range(self.prompts))
            covered += [estimate.low <= self.share <= estimate.high for estimate in estimates]
        return covered[0] / runs, covered[1] / runs


def length_control_coverage(
    prompts: int, rate: float, effect: float, longer: float, runs: int, seed: int
) -> tuple[float, float]:
    """Share of runs whose interval holds the rate at equal lengths, and the mean of the estimates.

    Args:
        effect: of length, in log-odds at the largest difference.
        longer: mean of the differences of length, in their standard deviations.
    """
    generator = np.random.default_rng(seed)
    covered, total = 0, 0.0
    for _ in range(runs):
        difference = 100 * generator.normal(longer, 1, prompts)
        logits = math.log(rate / (1 - rate)) + effect * np.tanh(difference / 100)
        won = generator.random(prompts) < 1 / (1 + np.exp(-logits))
        estimate = length_controlled(won, difference, np.zeros(prompts))
        covered += estimate.low <= rate <= estimate.high
        total += estimate.value
    return covered / runs, total / runs


def served_rates(points: float, prompts: int, answers: int, runs: int, seed: int) -> tuple[float, float]:
    """How often a new learner is served that is better by some points of 100: by the larger share, and by the gate."""
    generator = np.random.default_rng(seed)
    larger = by_gate = 0
    for _ in range(runs):
        served = generator.beta(1.2, 1.8, prompts)
        new = np.clip(served + generator.normal(0, 0.1, prompts), 0, 1)
        new = np.clip(new + points / 100 + served.mean() - new.mean(), 0, 1)
        satisfied = [(generator.binomial(answers, rates) / answers).tolist() for rates in (served, new)]
        larger += np.mean(satisfied[1]) >= np.mean(satisfied[0])
        by_gate += choose_served(dict(enumerate(satisfied)), 0, answers, 0.05)[0] == 1
    return float(larger) / runs, by_gate / runs
