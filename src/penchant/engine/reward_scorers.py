"""Scorers of rewards: of a preference head beside log-probs, and of a reward model, by the tree or padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack
from penchant.engine.device import to_float64
from penchant.engine.padded import PaddedScorer, pad_right, unpack
from penchant.engine.scoring import PackedScorer
from penchant.engine.tree import TreeScorer, last_hidden, reorder_for_attention
from penchant.errors import DataError
from penchant.models.multimodal import language_model
from penchant.models.preference_head import PreferenceHead
from penchant.models.special_tokens import pad_token_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
        return torch.stack([log_probs, batch.to_group_matrix(to_float64(self.head(last)))])


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
        """The groups as one row; see `reorder_for_attention`."""
        return reorder_for_attention(pack(groups, temperature), self.model)

    def forward(self, batch: TreeBatch) -> Tensor:
        """[G, K] rewards, in float64; 0 in empty slots."""
        hidden = last_hidden(self.model, batch)
        positions = reward_positions(batch, pad_token_id(self.model))
        return batch.to_group_matrix(to_float64(self.model.score(hidden.index_select(0, positions))[:, 0]))


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
    return to_float64(outputs[:, label])


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
    ends = to_float64(torch.where(tokens != pad, offsets + 1, 0))
    maxima = torch.segment_reduce(ends, "max", lengths=batch.lengths.to(ends.device))
    content = maxima.to(tokens.device, torch.int64)  # tokens before the pad tokens
    # The hidden state that predicts the first of the pad tokens at the end is the last other token's.
    last = batch.source.index_select(0, batch.paths.index_select(0, (firsts + content).clamp(max=size - 1)))
    return torch.where(content < batch.lengths, last, batch.ends)
