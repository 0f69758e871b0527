"""Scorers, which are trained and which references are read by; and scoring of many groups by one, without gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack, split_into_micro_batches
from penchant.engine.distributed import World, reshard
from penchant.storage.caches import LogProbCache


class CandidateGroup(Protocol):
    """What the training loop reads of a group; the rest is between its scorer and whatever made it."""

    @property
    def group(self) -> PreferenceGroup:
        """The candidates and the preferences among them."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Number of trained tokens of each candidate; 1 for a picture."""
        ...

    @property
    def length(self) -> int:
        """Number of tokens that are computed for the group; positions of latents for pictures."""
        ...


class Scorer(nn.Module, ABC):
    """A module whose `forward` gives [G, K] numbers of a collated batch: log-probs, rewards or minus noise errors."""

    @abstractmethod
    def cost(self, group: Any) -> int:
        """Number of tokens that the group takes of a micro-batch's budget."""

    @abstractmethod
    def collate(self, groups: Sequence[Any], temperature: float) -> Any:
        """The batch of G groups that `forward` takes; its ``to(device)`` is the same batch on a device.

        Args:
            temperature: divisor of the logits before the softmax.
        """


class PackedScorer(Scorer):
    """A scorer of a language model, which reads groups packed in one row."""

    def collate(self, groups: Sequence[TokenizedGroup], temperature: float) -> TreeBatch:
        """The groups as one row; see `pack`."""
        return pack(groups, temperature)


PACKING_WINDOW = 256
"""Number of groups that are packed together in a forward-only pass."""


def precision(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Autocast for the run's dtype: float32 master weights, matrix products in half precision where it is one."""
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, dtype=getattr(torch, dtype))


def micro_batches(scorer: Scorer, groups: Sequence[CandidateGroup], budget: int) -> list[list[int]]:
    """Indices of groups in micro-batches of `budget` tokens, window by window."""
    cuts = []
    for start in range(0, len(groups), PACKING_WINDOW):
        costs = [scorer.cost(group) for group in groups[start : start + PACKING_WINDOW]]
        cuts += [[start + i for i in members] for members in split_into_micro_batches(costs, budget)]
    return cuts


def score_groups(
    scorer: Scorer,
    groups: Sequence[CandidateGroup],
    *,
    world: World,
    budget: int,
    dtype: str,
    cache: LogProbCache | None = None,
    temperature: float = 1.0,
    advance: Callable[[int], None] = lambda groups: None,
) -> list[list[float]]:
    """Summed log-probs of every candidate of every group, nats, without gradients.

    The packing depends only on the groups, their order and the budget, never on what the cache holds, so that a cold
    and a warm cache, and any number of ranks, give the same bits.

    Args:
        scorer: holds the model; put in evaluation mode here.
        budget: tokens in a micro-batch.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of the matrix products.
        cache: where log-probs of this model at temperature 1 are kept; None computes them all.
        temperature: logits are divided by it.
        advance: called with the number of groups done since the last call.
    """
    cuts = micro_batches(scorer, groups, budget)

    def collate(b: int) -> Any:
        return scorer.collate([groups[i] for i in cuts[b]], temperature)

    batch_log_probs: dict[int, list[float]] = {}
    if cache is not None:
        cached = cache.look_up(collate(b) for b in range(len(cuts))) if world.is_main else {}
        batch_log_probs = world.broadcast(cached)
    uncached = [b for b in range(len(cuts)) if b not in batch_log_probs]
    advance(sum(len(cuts[b]) for b in batch_log_probs))
    was_training = scorer.training
    scorer.eval()
    rank_log_probs: dict[int, list[float]] = {}
    for b, _ in world.share(uncached):
        batch = collate(b)
        log_probs = _forward(scorer, batch, world.device, dtype)
        if log_probs.ndim == 3:  # With a preference head's rewards, which are not asked for here.
            log_probs = log_probs[0]
        rows = zip(cuts[b], log_probs.tolist(), strict=True)
        rank_log_probs[b] = [value for i, row in rows for value in row[: len(groups[i].tokens)]]
        if cache is not None:
            cache.keep(batch, rank_log_probs[b])
        advance(len(cuts[b]) * world.size)
    scorer.train(was_training)
    reshard(scorer)
    for part in world.gather(rank_log_probs):
        batch_log_probs.update(part)
    result: list[list[float]] = [[] for _ in groups]
    for b, members in enumerate(cuts):
        values = iter(batch_log_probs[b])
        for i in members:
            result[i] = [next(values) for _ in groups[i].tokens]
    return result


@torch.no_grad()
def score_with_head(
    scorer: Scorer, groups: Sequence[TokenizedGroup], *, world: World, budget: int, dtype: str
) -> list[list[float]]:
    """The preference head's reward of every candidate of every group, by a `HeadedScorer`."""
    scorer.eval()
    rank_rewards: dict[int, list[float]] = {}
    for members, _ in world.share(micro_batches(scorer, groups, budget)):
        batch = scorer.collate([groups[i] for i in members], 1.0).to(world.device)
        with precision(world.device, dtype):
            rewards = scorer(batch)[1]
        values = iter(rewards.flatten()[batch.slots.to(rewards.device)].tolist())
        rank_rewards.update({i: [next(values) for _ in groups[i].responses] for i in members})
    rewards_of_group = {i: row for part in world.gather(rank_rewards) for i, row in part.items()}
    return [rewards_of_group[i] for i in range(len(groups))]


@torch.no_grad()
def _forward(scorer: Scorer, batch: Any, device: torch.device, dtype: str) -> Tensor:
    with precision(device, dtype):
        log_probs: Tensor = scorer(batch.to(device))
    return log_probs
