"""Which scorer a model gets, and log-probs of many groups by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, cut, pack
from penchant.engine.attention import TREE, UnsupportedAttention, tree_attention
from penchant.engine.distribution import World, reshard
from penchant.engine.heads import HeadedScorer
from penchant.engine.lean import lighten
from penchant.engine.multimodal import set_attention
from penchant.engine.padded import PaddedScorer
from penchant.engine.reference_cache import ReferenceCache
from penchant.engine.reward_scorer import PaddedRewardScorer, TreeRewardScorer
from penchant.engine.tree import TreeScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LanguageScorer = TreeScorer | PaddedScorer
RewardScorer = TreeRewardScorer | PaddedRewardScorer
Scorer = LanguageScorer | RewardScorer | HeadedScorer

Chosen = TypeVar("Chosen", LanguageScorer, RewardScorer)

_CHECKED = 3
"""Candidates of a group that are looked at to see whether the tree is exact."""

WINDOW = 256
"""Groups looked at together when many are packed for a forward-only pass."""


@dataclass(frozen=True)
class Choice(Generic[Chosen]):
    """The scorer for a model, and why, when it is not the tree."""

    scorer: Chosen
    notice: str | None


def choose_scorer(model: PreTrainedModel, sample: Sequence[TokenizedGroup]) -> Choice[LanguageScorer]:
    """The tree where it is exact for this model on a real sample, the padded forward where it is not.

    Args:
        model: any causal language model.
        sample: a few real groups; at least one with a prompt of some length and two candidates tells the most.
    """
    return _choose(model, TreeScorer(model), PaddedScorer(model), sample)


def choose_reward_scorer(model: PreTrainedModel, sample: Sequence[TokenizedGroup]) -> Choice[RewardScorer]:
    """`choose_scorer` for a sequence-classification model, whose one output is the reward."""
    return _choose(model, TreeRewardScorer(model), PaddedRewardScorer(model), sample)


def _choose(model: PreTrainedModel, tree: Chosen, padded: Chosen, sample: Sequence[TokenizedGroup]) -> Choice[Chosen]:
    from transformers import AttentionInterface

    family = type(model).__name__
    if not model._can_set_attn_implementation():
        return Choice(padded, _notice(family, "its attention is not open to other implementations"))
    AttentionInterface.register(TREE, tree_attention)
    sample = [replace(group, responses=group.responses[:_CHECKED], learnt=None) for group in sample]
    batch = pack(sample).to(model.device)
    own = model.config._attn_implementation
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            set_attention(model, "eager")
            expected = _one_by_one(padded, sample, model.device)
            set_attention(model, TREE)
            lighten(model)
            actual = tree(batch).flatten()[batch.slots]
        difference = _largest_difference(actual, expected, model.dtype)
        reason = None if difference <= 1 else f"its numbers differ by {difference:.1f} times the tolerance"
    except (UnsupportedAttention, TypeError, AttributeError) as error:
        reason = str(error)
    finally:
        model.train(training)
    if reason is None:
        return Choice(tree, None)
    set_attention(model, own)
    return Choice(padded, _notice(family, reason))


def _one_by_one(padded: Scorer, sample: Sequence[TokenizedGroup], device: torch.device) -> Tensor:
    """[C] what the padded forward says of each candidate; alone, since all logits of many rows are gigabytes."""
    alone = (pack([replace(group, responses=(r,))]) for group in sample for r in group.responses)
    return torch.cat([padded(batch.to(device)).flatten() for batch in alone])


def sample_groups(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """Two groups for the self-check, of middling length among the first hundred: neither trivial nor slow."""
    ordered = sorted(groups[:100], key=lambda group: group.length)
    middle = len(ordered) // 2
    return ordered[middle : middle + 2]


def _notice(family: str, reason: str) -> str:
    return f"{family} is run padded, one row a candidate, slower: the packed tree is not exact for it ({reason})."


def _largest_difference(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> float:
    """Largest |actual - expected| as a multiple of what rounding allows in the dtype of the weights."""
    relative = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
    return float(((actual - expected).abs() / (10 * relative + relative * expected.abs())).max())


def precision(device: torch.device, dtype: str) -> AbstractContextManager[None]:
    """Autocast for the run's dtype: float32 master weights, bfloat16 matrix products."""
    if dtype == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def micro_batches(scorer: Scorer, groups: Sequence[TokenizedGroup], budget: int) -> list[list[int]]:
    """Indices of groups, cut window by window into micro-batches of `budget` tokens."""
    cuts = []
    for start in range(0, len(groups), WINDOW):
        costs = [scorer.cost(group) for group in groups[start : start + WINDOW]]
        cuts += [[start + i for i in members] for members in cut(costs, budget)]
    return cuts


def score_groups(
    scorer: Scorer,
    groups: Sequence[TokenizedGroup],
    *,
    world: World,
    budget: int,
    dtype: str,
    cache: ReferenceCache | None = None,
    advance: Callable[[int], None] = lambda groups: None,
) -> list[list[float]]:
    """Summed log-probs of every candidate of every group, nats, without gradients.

    The packing depends only on the groups, their order and the budget, never on what the cache holds, so that a cold
    and a warm cache, and any number of ranks, give the same bits.

    Args:
        scorer: holds the model; put in evaluation mode here.
        budget: tokens in a micro-batch.
        dtype: ``float32`` or ``bfloat16``, of the matrix products.
        cache: where log-probs of this model are kept; None computes them all.
        advance: called with the number of groups done since the last call.
    """
    cuts = micro_batches(scorer, groups, budget)

    def packed(b: int) -> TreeBatch:
        return pack([groups[i] for i in cuts[b]])

    done: dict[int, list[float]] = {}
    if cache is not None:
        known = cache.look_up(packed(b) for b in range(len(cuts))) if world.is_main else {}
        done = world.broadcast(known)
    missing = [b for b in range(len(cuts)) if b not in done]
    advance(sum(len(cuts[b]) for b in done))
    was_training = scorer.training
    scorer.eval()
    fresh: dict[int, list[float]] = {}
    for b, _ in world.share(missing):
        batch = packed(b)
        log_probs = _forward(scorer, batch, world.device, dtype)
        fresh[b] = log_probs.flatten()[batch.slots.to(log_probs.device)].tolist()
        if cache is not None:
            cache.keep(batch, fresh[b])
        advance(len(cuts[b]) * world.size)
    scorer.train(was_training)
    reshard(scorer)
    for part in world.gather(fresh):
        done.update(part)
    result: list[list[float]] = [[] for _ in groups]
    for b, members in enumerate(cuts):
        values = iter(done[b])
        for i in members:
            result[i] = [next(values) for _ in groups[i].responses]
    return result


@torch.no_grad()
def score_with_head(
    scorer: HeadedScorer, groups: Sequence[TokenizedGroup], *, world: World, budget: int, dtype: str
) -> list[list[float]]:
    """The preference head's reward of every candidate of every group."""
    scorer.eval()
    mine: dict[int, list[float]] = {}
    for members, _ in world.share(micro_batches(scorer, groups, budget)):
        batch = pack([groups[i] for i in members]).to(world.device)
        with precision(world.device, dtype):
            rewards = scorer(batch)[1]
        values = iter(rewards.flatten()[batch.slots].tolist())
        mine.update({i: [next(values) for _ in groups[i].responses] for i in members})
    found = {i: row for part in world.gather(mine) for i, row in part.items()}
    return [found[i] for i in range(len(groups))]


@torch.no_grad()
def _forward(scorer: Scorer, batch: TreeBatch, device: torch.device, dtype: str) -> Tensor:
    with precision(device, dtype):
        log_probs: Tensor = scorer(batch.to(device))
    return log_probs
