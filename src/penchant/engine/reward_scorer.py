"""Rewards of candidates by a sequence-classification model: its head at the token that transformers reads.

That is a candidate's last token that is not the configuration's pad token; the last of all where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch
from penchant.engine.multimodal import language_model
from penchant.engine.pad_token import pad_token_id
from penchant.engine.padded import pad_right, unpack
from penchant.engine.tree import last_hidden

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class TreeRewardScorer(nn.Module):
    """Rewards from one packed row, each prompt computed once."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: its prompt once, and its candidates."""
        return group.length

    def forward(self, batch: TreeBatch) -> Tensor:
        """[G, K] rewards, in float64; 0 in empty slots."""
        hidden = last_hidden(self.model, batch)
        positions = reward_positions(batch, pad_token_id(self.model))
        return batch.to_group_matrix(self.model.score(hidden.index_select(0, positions))[:, 0].double())


class PaddedRewardScorer(nn.Module):
    """Rewards from a padded row for each candidate."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: a row as long as its longest sequence for each candidate."""
        return len(group.responses) * group.longest

    def forward(self, batch: TreeBatch) -> Tensor:
        """[G, K] rewards, in float64; 0 in empty slots."""
        sequences, _ = unpack(batch)
        hidden = language_model(self.model)(**pad_right(sequences), use_cache=False).last_hidden_state
        # Not the model's own pooling: these rows are padded with another token.
        pad = pad_token_id(self.model)
        positions = torch.tensor([reward_position(sequence, pad) for sequence in sequences])
        return batch.to_group_matrix(self.model.score(hidden[torch.arange(len(positions)), positions])[:, 0].double())


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
    ends = torch.where(tokens != pad, offsets + 1, 0).double()
    content = torch.segment_reduce(ends, "max", lengths=batch.lengths).long()  # tokens before the pad tokens
    # The hidden state that predicts the first of the pad tokens at the end is the last other token's.
    last = batch.source.index_select(0, batch.paths.index_select(0, (firsts + content).clamp(max=size - 1)))
    return torch.where(content < batch.lengths, last, batch.ends)
