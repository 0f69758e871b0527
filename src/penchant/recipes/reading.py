"""How a recipe reads a model's log-probs, on this process's device and through the cache, and what they prefer."""

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


def pairs_right(scored: ScoredGroup) -> list[float]:
    """Of each pair whether the better candidate has the higher log-prob per token; a tie counts half.

    Per token: a model without preferences finds a longer answer less likely, whatever it says.
    """
    means = [value / n for value, n in zip(scored.log_probs, scored.tokens, strict=True)]
    return [(means[i] > means[j]) + 0.5 * (means[i] == means[j]) for i, j in scored.group.pairs]
