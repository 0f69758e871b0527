"""Which way a metric is better: what decides which checkpoint is the best. The table stands in docs/metrics.md too."""

from __future__ import annotations

from typing import Literal

Direction = Literal["lower", "higher"]

LOWER = ("loss", "nll_loss", "error", "rejected", "ddo_rm/kl")
"""Names, or their last parts, of what is better lower."""

NEITHER = (
    "kl",
    "ties",
    "entropy",
    "target_entropy",
    "target_reward",
    "advantage/squared",
    "multi_reference/clipped",
)
"""Of what describes a run and says not how good it is."""


def direction(metric: str) -> Direction | None:
    """Which way a metric is better; None where neither way is. A name that is in no table is better higher."""
    names = (metric, metric.rpartition("/")[2])
    if any(name in LOWER for name in names):
        return "lower"
    if any(name in NEITHER for name in names) or metric.startswith("multi_reference/weight_"):
        return None
    return "higher"
