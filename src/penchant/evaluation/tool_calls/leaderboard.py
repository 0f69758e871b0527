"""The overall score of the Berkeley leaderboard (version 4), of the categories that were measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penchant.evaluation.statistics import Estimate
from penchant.evaluation.tool_calls.category_means import weighted_mean

LIVE_SIZES = {"live_simple": 258, "live_multiple": 1053, "live_parallel": 16, "live_parallel_multiple": 24}
"""The questions of the live categories, by whose number the leaderboard weighs them."""

PARTS: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "non_live": (
        0.1,
        {
            **dict.fromkeys(("simple_python", "simple_java", "simple_javascript"), 1 / 12),
            **dict.fromkeys(("multiple", "parallel", "parallel_multiple"), 1 / 4),
        },
    ),
    "live": (0.1, {name: size / sum(LIVE_SIZES.values()) for name, size in LIVE_SIZES.items()}),
    "irrelevance": (0.1, dict.fromkeys(("irrelevance", "live_irrelevance"), 1 / 2)),
    "multi_turn": (0.3, {f"multi_turn_{name}": 1 / 4 for name in ("base", "miss_func", "miss_param", "long_context")}),
    "agentic": (
        0.4,
        {
            **dict.fromkeys(("web_search_base", "web_search_no_snippet"), 1 / 4),
            **dict.fromkeys(("memory_kv", "memory_vector", "memory_rec_sum"), 1 / 6),
        },
    ),
}
"""The parts of the overall score: the weight of each, and of every category within it (`eval_runner_helper.py`)."""


@dataclass(frozen=True)
class LeaderboardScore:
    """The leaderboard's overall score.

    Attributes:
        overall: the score as the leaderboard defines it; a category that was not measured counts as 0.
        measured_weight: the sum of the weights of the measured categories, of 1.
        parts: the score of every part, in which a category that was not measured counts as 0 too.
        missing: the categories that were not measured.
    """

    overall: Estimate
    measured_weight: float
    parts: Mapping[str, float]
    missing: tuple[str, ...]

    @classmethod
    def from_categories(cls, categories: Mapping[str, Sequence[bool]]) -> LeaderboardScore | None:
        """The score; None if no category of the leaderboard was measured.

        Args:
            categories: whether each answer is right, by category.
        """
        weights = {name: part * share for part, shares in PARTS.values() for name, share in shares.items()}
        measured_names = [name for name in weights if categories.get(name)]
        if not measured_names:
            return None
        right = {name: sum(categories[name]) / len(categories[name]) for name in measured_names}
        return cls(
            weighted_mean(
                [categories[name] for name in measured_names], [weights[name] for name in measured_names], total=1.0
            ),
            sum(weights[name] for name in measured_names),
            {
                part: sum(share * right.get(name, 0.0) for name, share in shares.items())
                for part, (_, shares) in PARTS.items()
            },
            tuple(name for name in weights if name not in right),
        )

    @property
    def of_measured(self) -> float:
        """The mean over the measured categories, by the leaderboard's weights."""
        return self.overall.value / self.measured_weight

    def to_json(self) -> dict[str, Any]:
        """The score as JSON."""
        return {
            "overall": self.overall.to_json(),
            "measured_weight": self.measured_weight,
            "of_measured": self.of_measured,
            "parts": dict(self.parts),
            "missing": list(self.missing),
        }
