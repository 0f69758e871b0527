"""`compare`'s verdicts in simulated comparisons, written anew with arrays: family-wise error and power.

Of [M, S, N] differences of M methods from one baseline, which are called better or worse at the first step of Holm's
procedure; without an effect that decides whether there is any false verdict, and with one it is a lower bound on power.

Legend: R simulated comparisons, M methods, S seeds, N prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from penchant.evaluation.variance_components import FAMILY_LEVEL, METHOD_LEVEL, share_of_level

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

GRID = np.r_[0, np.geomspace(0.02, 1e5, 300)]
"""Variances of seeds' means, in units of the residual's part of the error."""


@dataclass(frozen=True)
class Setting:
    """A simulated comparison of methods with one baseline.

    Attributes:
        shares: [M + 1] of each model, the baseline first: the variance of its seeds, in units of what prompts and
            residual add to a mean's.
        residual: standard deviation of what is neither the seed's nor the prompt's, in units of the prompts'.
        yes_or_no: values are 1 where a normal variable is above zero, else 0.
    """

    shares: tuple[float, ...]
    seeds: int
    prompts: int
    residual: float = 1.0
    yes_or_no: bool = False

    @property
    def methods(self) -> int:
        return len(self.shares) - 1

    def draw(self, generator: np.random.Generator) -> Floats:
        """[M, S, N] differences of methods from the baseline, without an effect."""
        models = self.methods + 1
        other_variance = 1 / self.prompts + self.residual**2 / (self.seeds * self.prompts)
        scale = np.sqrt(np.array(self.shares) * other_variance * self.seeds)[:, None, None]
        values = (
            scale * generator.standard_normal((models, self.seeds, 1))
            + generator.standard_normal((models, 1, self.prompts))
            + self.residual * generator.standard_normal((models, self.seeds, self.prompts))
        )
        if self.yes_or_no:
            values = (values > 0).astype(np.float64)
        return values[1:] - values[:1]


def equal(methods: int, seeds: int, prompts: int, share: float, residual: float, yes_or_no: bool = False) -> Setting:
    """The same variance of seeds in all models."""
    return Setting((share,) * (methods + 1), seeds, prompts, residual, yes_or_no)


NULLS = [
    equal(5, 5, 100, 0.5, 1.0),
    equal(5, 3, 100, 20.0, 1.0),
    equal(5, 3, 100, 2.0, 3.0),
    equal(12, 3, 50, 5.0, 3.0),
    equal(12, 3, 100, 2.0, 1.0),
    equal(12, 3, 100, 20.0, 1.0),
    equal(12, 5, 100, 2.0, 3.0),
    equal(12, 3, 200, 5.0, 3.0, True),
    equal(12, 3, 200, 2.0, 2.0, True),
    equal(1, 3, 100, 20.0, 1.0),
]
"""The ten settings of decision 006."""

UNEQUAL = {
    "one method's seeds differ": lambda share: Setting((0, share, 0, 0, 0, 0), 3, 100, 1.0),
    "two methods' do": lambda share: Setting((0, share, share, 0, 0, 0), 3, 100, 1.0),
    "the baseline's do": lambda share: Setting((share, 0, 0, 0, 0, 0), 3, 100, 1.0),
    "one of twelve, residual large": lambda share: Setting((0, share) + (0,) * 11, 3, 100, 3.0),
    "the baseline of twelve": lambda share: Setting((share,) + (0,) * 12, 3, 100, 3.0),
    "one method's, 5 seeds": lambda share: Setting((0, share, 0, 0, 0, 0), 5, 100, 1.0),
}
UNEQUAL_SHARES = (0.5, 2.0, 5.0, 20.0, 100.0)


@dataclass(frozen=True)
class MeanSquares:
    """Of [..., M] methods the mean, and the parts of its variance that come from seeds, residual and prompts.

    Attributes:
        of_seeds: the variance of the seeds' means over S; the residual's part is in it.
        residual: the residual's part alone.
        of_prompts: the prompts' part, not below zero.
    """

    mean: Floats
    of_seeds: Floats
    residual: Floats
    of_prompts: Floats
    seeds: int
    prompts: int

    @classmethod
    def from_differences(cls, differences: Floats) -> MeanSquares:
        """Of [..., M, S, N] differences."""
        seeds, prompts = differences.shape[-2:]
        rows, columns = differences.mean(-1), differences.mean(-2)
        mean = rows.mean(-1)
        squares = (differences**2).sum((-2, -1)) - prompts * (rows**2).sum(-1) - seeds * (columns**2).sum(-1)
        residual = (squares + seeds * prompts * mean**2).clip(1e-12) / ((seeds - 1) * (prompts - 1))
        of_prompts = (columns.var(-1, ddof=1) - residual / seeds).clip(0) / prompts
        return cls(
            mean, rows.var(-1, ddof=1) / seeds, residual / (seeds * prompts), of_prompts, seeds, prompts
        )  # fmt: skip


def decided_by_parts(squares: MeanSquares, level: float) -> Bools:
    """[..., M] whether the careful interval at a level leaves zero out: each part has its own quantile."""
    few, many = squares.seeds - 1, squares.prompts - 1
    of_seeds = np.maximum(squares.of_seeds, squares.residual)
    quantiles = stats.t.isf(level / 2, few), stats.t.isf(level / 2, many)
    by_parts = np.sqrt(quantiles[0] ** 2 * of_seeds + quantiles[1] ** 2 * squares.of_prompts)
    error = np.sqrt(of_seeds + squares.of_prompts)
    noise = 0.6 * squares.residual**2 / of_seeds
    share = ((squares.of_seeds - noise) / error**2).clip(1e-12)
    share = share ** (1 - share)
    t = np.abs(squares.mean) / error
    mixed = share * 2 * stats.t.sf(t, few) + (1 - share) * 2 * stats.t.sf(t, many)
    return (np.abs(squares.mean) > by_parts) & (mixed < level)


def agrees(squares: MeanSquares) -> Bools:
    """[..., M] whether a method's seeds, and all methods' together, differ no more than the residual explains."""
    ratios = squares.of_seeds / squares.residual
    methods, few, many = ratios.shape[-1], squares.seeds - 1, (squares.seeds - 1) * (squares.prompts - 1)
    family = stats.f.sf(ratios.mean(-1), methods * few, methods * many) >= FAMILY_LEVEL
    return (stats.f.sf(ratios, few, many) >= METHOD_LEVEL) & family[..., None] & (methods > 1)


def decided_by_agreement(squares: MeanSquares, alpha: float) -> Bools:
    """[..., M] whether a method is told where its seeds agree."""
    agreeing = agrees(squares)
    methods, few, many = agreeing.shape[-1], squares.seeds - 1, (squares.seeds - 1) * (squares.prompts - 1)
    floor = 2 * stats.t.sf(np.abs(squares.mean) / np.sqrt(squares.residual + squares.of_prompts), squares.prompts - 1)
    decided = agreeing & (floor < alpha / methods)
    limit = stats.f.isf(METHOD_LEVEL, few, many)
    chance = stats.f.cdf(limit / (1 + GRID), few, many)
    mean, residual, of_prompts = (
        part[decided] for part in (np.abs(squares.mean), squares.residual, squares.of_prompts)
    )
    errors = np.sqrt(of_prompts[:, None] + residual[:, None] * (1 + GRID))
    tails = chance * 2 * stats.t.sf(mean[:, None] / errors, squares.prompts - 1)
    decided[decided] = tails.max(-1) < alpha * share_of_level(squares.seeds)
    return decided


def family_error(setting: Setting, runs: int, seed: int, alpha: float = 0.05) -> tuple[float, float]:
    """Share of comparisons without an effect that have any verdict: by the careful intervals alone, and by the rule."""
    generator = np.random.default_rng(seed)
    counts = np.zeros(2)
    size = max(1, (1 << 21) // ((setting.methods + 1) * setting.seeds * setting.prompts))
    for start in range(0, runs, size):
        draws = np.stack([setting.draw(generator) for _ in range(min(size, runs - start))])
        squares = MeanSquares.from_differences(draws)
        careful = decided_by_parts(squares, alpha / setting.methods)
        counts += [careful.any(-1).sum(), (careful | decided_by_agreement(squares, alpha)).any(-1).sum()]
    return counts[0] / runs, counts[1] / runs


@dataclass(frozen=True)
class Accuracies:
    """Yes-or-no values of a baseline and methods of which the last is better.

    A model is right where a normal variable is above its threshold; its parts are the prompt's, shared by all models,
    the model's own at a prompt, and what differs from seed to seed.

    Attributes:
        shared, specific: shares of the variable's variance that are the prompt's, and the model's at the prompt.
        seed_points: standard deviation of a model's accuracy from seed to seed, about, in points of 100.
    """

    baseline: float
    gap: float
    shared: float
    specific: float
    seed_points: float
    methods: int = 5
    seeds: int = 3
    prompts: int = 300

    def draw(self, generator: np.random.Generator) -> Floats:
        """[M, S, N] differences from the baseline."""
        models = self.methods + 1
        rates = np.full(models, self.baseline)
        rates[-1] += self.gap
        # A shift of the threshold by d moves the accuracy by the density there times d.
        thresholds = stats.norm.isf(rates)
        shifts = self.seed_points / 100 / stats.norm.pdf(thresholds)
        noise = np.sqrt(1 - self.shared - self.specific)
        values = (
            np.sqrt(self.shared) * generator.standard_normal((1, 1, self.prompts))
            + np.sqrt(self.specific) * generator.standard_normal((models, 1, self.prompts))
            + shifts[:, None, None] * generator.standard_normal((models, self.seeds, 1))
            + noise * generator.standard_normal((models, self.seeds, self.prompts))
        )
        right = (values > thresholds[:, None, None]).astype(np.float64)
        return right[1:] - right[:1]


def power(accuracies: Accuracies, runs: int, seed: int, alpha: float = 0.05) -> tuple[float, float]:
    """Share of comparisons in which the better method is told: by the careful intervals alone, and by the rule."""
    generator = np.random.default_rng(seed)
    counts = np.zeros(2)
    size = 200
    for start in range(0, runs, size):
        draws = np.stack([accuracies.draw(generator) for _ in range(min(size, runs - start))])
        squares = MeanSquares.from_differences(draws)
        careful = decided_by_parts(squares, alpha / accuracies.methods)[:, -1]
        agreement = decided_by_agreement(squares, alpha)[:, -1]
        counts += [careful.sum(), (careful | agreement).sum()]
    return counts[0] / runs, counts[1] / runs
