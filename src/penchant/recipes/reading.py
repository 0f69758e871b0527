"""How a recipe reads a model's log-probs: one model, on this process's device, through the cache."""

from __future__ import annotations

from collections.abc import Sequence

from penchant.data.groups import PreferenceGroup
from penchant.engine.distribution import World, local_device
from penchant.evaluation.held_out import Reading, ScoredGroup, score


def read_log_probs(model: str, groups: Sequence[PreferenceGroup], token_budget: int) -> list[ScoredGroup]:
    """Of every candidate of every group.

    Args:
        model: folder or hub id.
        token_budget: tokens in a micro-batch.
    """
    return score(model, groups, World(0, 1, local_device()), reading=Reading(token_budget=token_budget))
