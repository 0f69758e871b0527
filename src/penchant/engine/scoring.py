"""The choice of a model's scorer; log-probs, rewards and head scores of many groups by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import torch
from torch import Tensor

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack, split_into_micro_batches
from penchant.engine.device import exact, float32_products
from penchant.engine.distributed import World, reshard
from penchant.engine.padded import PaddedScorer, pad_right, unpack
from penchant.engine.scorer import CandidateGroup, PackedScorer, Scorer
from penchant.engine.tree import TreeScorer, arranged, last_hidden
from penchant.engine.tree_check import TreeCheck, is_half, measure_rounding, rounding_note
from penchant.engine.whole_layers import compile_layers, undo_compilation
from penchant.engine.working_weights import WorkingWeights
from penchant.errors import DataError
from penchant.models.multimodal import language_model, set_attention
from penchant.models.preference_head import PreferenceHead
from penchant.models.special_tokens import pad_token_id
from penchant.storage.caches import LogProbCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Pooling = Literal["identity", "tanh", "dropout_tanh", "swiglu", "swiglu_down"]
NAME = "preference_head"


class HeadedScorer(PackedScorer):
    """Log-probs and the head's rewards from one pass of the language model; the head does not change the log-probs."""

    def __init__(self, scorer: TreeScorer | PaddedScorer, head: PreferenceHead) -> None:
        super().__init__()
        self.model = scorer.model
        self.head = head
        # Not a submodule: its weights are the model's, and every weight has one name.
        self._inner = (scorer,)

    def collate(self, groups: Sequence[TokenizedGroup], temperature: float) -> TreeBatch:
        """The batch of the scorer that it is added to."""
        return self._inner[0].collate(groups, temperature)

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch."""
        return self._inner[0].cost(group)

    def forward(self, batch: TreeBatch) -> Tensor:
        """Log-probs (nats) and rewards, stacked [2, G, K]; 0 in empty slots."""
        log_probs, last = self._inner[0].forward_with_hidden(batch)
        return torch.stack([log_probs, batch.to_group_matrix(self.head(last).to(log_probs))])


def require_end_tokens(groups: Sequence[TokenizedGroup], ends: Sequence[int]) -> None:
    """Refuse a response without its end-of-turn token: the head would score the turn before.

    Raises:
        DataError: names the group and candidate.
    """
    for group in groups:
        for k, response in enumerate(group.responses):
            if int(response[-1]) not in ends:
                raise DataError(
                    f"candidate {k} ends with token {int(response[-1])}, which ends no turn; a head reads the end",
                    where=f"group {group.group.id}",
                    fix="raise data.max_length, so that no response is cut",
                )


class TreeRewardScorer(PackedScorer):
    """Rewards from one packed row, each prompt computed once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: its prompt once, and its candidates."""
        return group.length

    def collate(self, groups: Sequence[TokenizedGroup], temperature: float) -> TreeBatch:
        """The groups as one row; see `arranged`."""
        return arranged(pack(groups, temperature), self.model)

    def forward(self, batch: TreeBatch) -> Tensor:
        """[G, K] rewards, in float64; 0 in empty slots."""
        hidden = last_hidden(self.model, batch)
        positions = reward_positions(batch, pad_token_id(self.model))
        return batch.to_group_matrix(exact(self.model.score(hidden.index_select(0, positions))[:, 0]))


class PaddedRewardScorer(PackedScorer):
    """Rewards from a padded row for each candidate."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: a row as long as its longest sequence for each candidate."""
        return len(group.responses) * group.longest

    def forward(self, batch: TreeBatch) -> Tensor:
        """[G, K] rewards, in float64; 0 in empty slots."""
        return batch.to_group_matrix(padded_rewards(self.model, unpack(batch)[0]))


def padded_rewards(model: PreTrainedModel, sequences: Sequence[Tensor], label: int = 0) -> Tensor:
    """Rewards [N] of N sequences of ids, in float64, from one padded batch.

    Args:
        label: which of the model's outputs.
    """
    inputs = pad_right(sequences)
    if hasattr(model, "score"):
        hidden = language_model(model)(**inputs, use_cache=False).last_hidden_state
        # Not the model's own pooling: these rows are padded with another token.
        pad = pad_token_id(model)
        positions = torch.tensor([reward_position(sequence, pad) for sequence in sequences])
        outputs: Tensor = model.score(hidden[torch.arange(len(positions)), positions])
    else:  # a bidirectional classifier, whose head reads the first token
        outputs = model(**inputs).logits
    return exact(outputs[:, label])


def reward_position(sequence: Tensor, pad: int | None) -> int:
    """Index of the last of ids [T] that is no pad token; 0 where all are, as in transformers."""
    if pad is None:
        return len(sequence) - 1
    content = (sequence != pad).nonzero()
    return int(content[-1]) if len(content) else 0


def reward_positions(batch: TreeBatch, pad: int | None) -> Tensor:
    """Indices [C] in the packed row of each candidate's last token that is no pad token.

    For a candidate of pad tokens only it is the prompt's last token.
    """
    if pad is None:
        return batch.ends
    tokens, size = batch.targets.index_select(0, batch.paths), len(batch.paths)
    firsts = batch.lengths.cumsum(0) - batch.lengths
    offsets = torch.arange(size, device=tokens.device) - firsts.repeat_interleave(batch.lengths, output_size=size)
    ends = exact(torch.where(tokens != pad, offsets + 1, 0))
    maxima = torch.segment_reduce(ends, "max", lengths=batch.lengths.to(ends.device))
    content = maxima.to(tokens.device, torch.int64)  # tokens before the pad tokens
    # The hidden state that predicts the first of the pad tokens at the end is the last other token's.
    last = batch.source.index_select(0, batch.paths.index_select(0, (firsts + content).clamp(max=size - 1)))
    return torch.where(content < batch.lengths, last, batch.ends)


LanguageScorer = TreeScorer | PaddedScorer
RewardScorer = TreeRewardScorer | PaddedRewardScorer

ScorerType = TypeVar("ScorerType", LanguageScorer, RewardScorer)

CHECK_GROUPS = 8
"""Groups that the check at load may look at; two of them mostly suffice."""

COMPILED_ROUNDINGS = 4.0
"""Largest difference of compiled layers' numbers, as a multiple of the rounding of the layers as they are."""

COMPILED_TOLERANCE = 1e-3
"""The same as a share of the largest number, where products are float32 or TF32."""

PACKING_WINDOW = 256
"""Number of groups that are packed together in a forward-only pass."""


@dataclass(frozen=True)
class ScorerChoice(Generic[ScorerType]):
    """The scorer chosen for a model, and notes about it.

    Attributes:
        notice: why it is not the tree, and what that costs; None where it is.
        rounding: largest error of its numbers from float32 on the sample, in nats (rewards: as they are); None in
            float32 and float64, and where it could not be measured.
        half: whether matrix products are rounded to half precision.
    """

    scorer: ScorerType
    notice: str | None
    rounding: float | None = None
    half: bool = False

    @property
    def notes(self) -> list[str]:
        """Lines for people who compare candidates by these numbers."""
        lines: list[str] = [self.notice] if self.notice is not None else []
        if self.half:
            lines.append(rounding_note(self.rounding))
        return lines


def choose_scorer(
    model: PreTrainedModel, sample: Sequence[TokenizedGroup], dtype: str = "float32"
) -> ScorerChoice[LanguageScorer]:
    """The tree where it is exact for this model on a real sample, the padded forward where it is not.

    Args:
        model: any causal language model.
        sample: a few real groups; at least one with a prompt of some length and two candidates tells the most.
        dtype: ``float32``, ``bfloat16`` or ``float16``, of the matrix products, as in `precision`.
    """
    return _choose(model, TreeScorer(model), PaddedScorer(model), sample, dtype)


def choose_reward_scorer(
    model: PreTrainedModel, sample: Sequence[TokenizedGroup], dtype: str = "float32"
) -> ScorerChoice[RewardScorer]:
    """`choose_scorer` for a sequence-classification model, whose one output is the reward."""
    return _choose(model, TreeRewardScorer(model), PaddedRewardScorer(model), sample, dtype)


def _choose(
    model: PreTrainedModel, tree: ScorerType, padded: ScorerType, sample: Sequence[TokenizedGroup], dtype: str
) -> ScorerChoice[ScorerType]:
    half = is_half(model.dtype, dtype)
    check = TreeCheck(model, tree, padded, lambda: precision(model.device, dtype), half)
    implementation = model.config._attn_implementation
    training = model.training
    model.eval()
    try:
        # Not in TF32, in which training may multiply: its rounding is far above the check's tolerance.
        with torch.no_grad(), float32_products("highest"):
            verdict = check.verdict(sample)
    finally:
        model.train(training)
    if verdict.reason is None:
        return ScorerChoice(tree, None, verdict.rounding, half)
    if model._can_set_attn_implementation():
        set_attention(model, implementation)
    return ScorerChoice(
        padded, _notice(model, verdict.reason, _token_ratio(tree, padded, sample)), verdict.rounding, half
    )


def compile_scorer(
    scorer: PackedScorer,
    sample: Sequence[TokenizedGroup],
    dtype: str,
    rounding: float | None,
    backend: str | Callable[..., Any] = "inductor",
) -> str | None:
    """Compile the layers of a scorer that trains; a notice where their numbers differ, and they then run as before.

    The graphs that are checked are those that train: in its dtype, with its weights, with a backward.

    Args:
        sample: groups of the run.
        rounding: largest error of the scorer's numbers in half precision, in nats; None where it is not known.
        backend: as of `compile_layers`.
    """
    model: Any = scorer.model
    compile_layers(model, backend)
    batch = scorer.collate(sample[:2], 1.0).to(model.device)
    weights = WorkingWeights(model, getattr(torch, dtype)) if dtype != "float32" else None
    with precision(model.device, dtype), nullcontext() if weights is None else weights.in_place():
        compiled = scorer(batch).detach()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), precision(model.device, dtype):
        plain = scorer(batch)
    difference = float((compiled - plain).abs().max())
    largest = COMPILED_ROUNDINGS * (rounding or 0.0) + COMPILED_TOLERANCE * (1 + float(plain.abs().max()))
    if difference <= largest:
        return None
    undo_compilation(model)
    return (
        f"layers are not compiled, which costs time: compiled they give log-probs that differ by {difference:.2g} nats"
    )


def _token_ratio(tree: Scorer, padded: Scorer, sample: Sequence[TokenizedGroup]) -> float:
    """Tokens of padded rows over those of the tree."""
    return sum(map(padded.cost, sample)) / sum(map(tree.cost, sample))


def _notice(model: PreTrainedModel, reason: str, times: float) -> str:
    return (
        f"{type(model).__name__} is run padded, one row a candidate, which computes about {times:.1f} times the tokens "
        f"of the packed tree: the tree is not exact for it ({reason})."
    )


@torch.no_grad()
def head_scorer_notes(
    choice: ScorerChoice[LanguageScorer], scorer: HeadedScorer, sample: Sequence[TokenizedGroup], dtype: str
) -> list[str]:
    """`ScorerChoice.notes` of a model whose preference head's rewards are compared."""
    notes = [] if choice.notice is None else [choice.notice]
    if not choice.half:
        return notes
    batch = scorer.collate(sample[:2], 1.0).to(scorer.model.device)
    training = scorer.training
    scorer.eval()
    rounding = measure_rounding(
        scorer,
        lambda: scorer(batch)[1],
        lambda: precision(scorer.model.device, dtype),
        scorer.model.get_output_embeddings(),
    )
    scorer.train(training)
    return [*notes, rounding_note(rounding)]


def sample_groups(groups: Sequence[TokenizedGroup]) -> list[TokenizedGroup]:
    """Groups for the check at load, in the order of checking: neither trivial nor slow.

    They have middling lengths among the first hundred.
    """
    ordered = sorted(groups[:100], key=lambda group: group.length)
    middle = len(ordered) // 2
    return [*ordered[middle : middle + CHECK_GROUPS], *reversed(ordered[max(0, middle - CHECK_GROUPS) : middle])][
        :CHECK_GROUPS
    ]


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
    missing = [b for b in range(len(cuts)) if b not in batch_log_probs]
    advance(sum(len(cuts[b]) for b in batch_log_probs))
    was_training = scorer.training
    scorer.eval()
    rank_log_probs: dict[int, list[float]] = {}
    for b, _ in world.share(missing):
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
    scorer: HeadedScorer, groups: Sequence[TokenizedGroup], *, world: World, budget: int, dtype: str
) -> list[list[float]]:
    """The preference head's reward of every candidate of every group."""
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
