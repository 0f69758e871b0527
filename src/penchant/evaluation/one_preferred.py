"""Rank metrics of the only preferred candidate among more than two: hit ratio, NDCG and reciprocal rank.

Legend: O groups with one preferred candidate among more than two, C candidates of all groups in one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from penchant.data.groups import PreferenceGroup
from penchant.evaluation.statistics import Estimate, Floats, Ints, bootstrap_mean

CUTOFFS = (5, 10)
"""The k of NDCG, and of hit ratio beyond 1 where candidates are more."""

CHOSEN_FROM = "over groups of more than 2 candidates of which one is preferred to all others and no other pair is known"
_TIES = "the mean over all orders of ties"
CHOICE_METRICS = {
    **{
        f"hit_ratio@{k}": f"share of groups whose preferred candidate is among the {k} highest by {{score}}; {_TIES}"
        for k in (1, *CUTOFFS)
    },
    "mrr": f"1 / rank of the preferred candidate by {{score}}; {_TIES}",
    **{
        f"ndcg@{k}": f"1 / log2(1 + rank) of the preferred candidate by {{score}}, 0 beyond rank {k}; {_TIES}"
        for k in CUTOFFS
    },
}
"""Definition of every metric by name; each is a mean over groups."""


@dataclass(frozen=True)
class TargetRank:
    """The rank of the target among the candidates, the best first.

    Attributes:
        n_higher: how many candidates have a higher score.
        n_tied: how many have the same score, the target among them.
    """

    n_higher: int
    n_tied: int

    @classmethod
    def by_scores(cls, scores: Sequence[float], target: int) -> TargetRank:
        """The rank of the candidate `target` by [K] scores."""
        reached = scores[target]
        return cls(sum(score > reached for score in scores), sum(score == reached for score in scores))

    def hit(self, k: int) -> float:
        """Probability that the target is among the first k with ties in random order."""
        return min(1.0, max(0.0, (k - self.n_higher) / self.n_tied))

    def ndcg(self, k: int) -> float:
        """Expected ``1 / log2(1 + rank)`` within the first k (one relevant item: the ideal is 1)."""
        return self._mean(lambda rank: 1 / math.log2(1 + rank) if rank <= k else 0.0)

    def reciprocal(self) -> float:
        """Expected ``1 / rank``."""
        return self._mean(lambda rank: 1 / rank)

    def _mean(self, value: Callable[[int], float]) -> float:
        return sum(value(self.n_higher + i) for i in range(1, self.n_tied + 1)) / self.n_tied


def one_preferred(group: PreferenceGroup) -> int | None:
    """Index of the only candidate that is preferred to all others, of three or more; None if the pairs are others."""
    pairs, k = set(group.pairs), len(group.candidates)
    if k < 3 or len(pairs) != k - 1:
        return None
    (best, *other_best) = {better for better, _ in pairs}
    return best if not other_best and {worse for _, worse in pairs} == set(range(k)) - {best} else None


@dataclass(frozen=True)
class OnePreferred:
    """The groups with one preferred candidate, among others.

    Attributes:
        target: [O] index of the preferred candidate in its group.
        sizes: [O] number of candidates in the group.
        first_candidate: [O] index of the group's first candidate in the row of candidates.
        prompt: [O] number of the group's prompt.
    """

    target: list[int]
    sizes: list[int]
    first_candidate: list[int]
    prompt: list[int]
    resamples: int = 2000
    seed: int = 0

    @classmethod
    def from_groups(
        cls, groups: Sequence[PreferenceGroup], prompts: Ints, resamples: int = 2000, seed: int = 0
    ) -> OnePreferred:
        """The groups that have one preferred candidate; `prompts` is [G], a number for every group's prompt."""
        chosen = cls([], [], [], [], resamples, seed)
        first_candidate = 0
        for group, prompt in zip(groups, prompts.tolist(), strict=True):
            target = one_preferred(group)
            if target is not None:
                chosen.target.append(target)
                chosen.sizes.append(len(group.candidates))
                chosen.first_candidate.append(first_candidate)
                chosen.prompt.append(prompt)
            first_candidate += len(group.candidates)
        return chosen

    def compare(self, scores: Floats) -> dict[str, Estimate]:
        """Metrics of [C] scores with intervals over prompts, by name; empty without such groups."""
        if not self.target:
            return {}
        rows = zip(self.first_candidate, self.sizes, self.target, strict=True)
        ranks = [
            TargetRank.by_scores(scores[first_candidate : first_candidate + size].tolist(), target)
            for first_candidate, size, target in rows
        ]
        widest = max(self.sizes)
        values = {f"hit_ratio@{k}": [rank.hit(k) for rank in ranks] for k in (1, *CUTOFFS) if k < widest}
        values["mrr"] = [rank.reciprocal() for rank in ranks]
        # Beyond the widest list a second cutoff would repeat the first.
        cutoffs = [k for i, k in enumerate(CUTOFFS) if i == 0 or CUTOFFS[i - 1] < widest]
        values |= {f"ndcg@{k}": [rank.ndcg(k) for rank in ranks] for k in cutoffs}
        return {
            name: bootstrap_mean(numbers, self.prompt, resamples=self.resamples, seed=self.seed)
            for name, numbers in values.items()
        }
