"""Rewards of candidates by a sequence-classification model: its head at each candidate's last token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch
from penchant.engine.multimodal import language_model
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
        return batch.table(self.model.score(hidden.index_select(0, batch.ends))[:, 0].double())


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
        ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
        # Not the model's own pooling: it looks for the pad token, which may be the end token.
        return batch.table(self.model.score(hidden[torch.arange(len(ends)), ends])[:, 0].double())
