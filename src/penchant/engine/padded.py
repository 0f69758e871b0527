"""The oracle: a plain padded forward, one row per candidate, full logits. Small and obvious; the tree must equal it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch
from penchant.engine.device import to_float64
from penchant.engine.output_head import target_log_probs
from penchant.engine.scoring import PackedScorer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PaddedScorer(PackedScorer):
    """Log-probs of candidates, each computed from its whole sequence prompt + response."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: a row as long as its longest sequence for each candidate."""
        return len(group.responses) * group.longest

    def forward(self, batch: TreeBatch) -> Tensor:
        """Summed log-probs [G, K], nats, in float64; 0 in empty slots."""
        sequences, prompts = unpack(batch)
        logits = self.model(**pad_right(sequences), use_cache=False).logits
        return self._log_probs(batch, logits, sequences, prompts)

    def forward_with_hidden(self, batch: TreeBatch) -> tuple[Tensor, Tensor]:
        """Summed log-probs [G, K], and the last hidden state of each candidate's last token [C, D]."""
        sequences, prompts = unpack(batch)
        out = self.model(**pad_right(sequences), use_cache=False, output_hidden_states=True)
        ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
        last = out.hidden_states[-1][torch.arange(len(ends)), ends]
        return self._log_probs(batch, out.logits, sequences, prompts), last

    def _log_probs(self, batch: TreeBatch, logits: Tensor, sequences: list[Tensor], prompts: list[int]) -> Tensor:
        sums, start = [], 0
        for row, (sequence, prompt) in enumerate(zip(sequences, prompts, strict=True)):
            response_logits = logits[row, prompt - 1 : len(sequence) - 1]
            response_logits = response_logits.to(torch.promote_types(response_logits.dtype, torch.float32))
            token_log_probs = target_log_probs(response_logits / batch.temperature, sequence[prompt:])
            learned = slice(None) if batch.loss_mask is None else batch.loss_mask[start : start + len(token_log_probs)]
            sums.append(to_float64(token_log_probs[learned]).sum())
            start += len(token_log_probs)
        return batch.to_group_matrix(torch.stack(sums))


def pad_right(sequences: Sequence[Tensor]) -> dict[str, Tensor]:
    """A model's inputs, padded on the right: ids and mask [N, longest] of N sequences."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64, device=sequences[0].device)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_left(x: Tensor, length: int, dim: int = -1) -> Tensor:
    """The tensor [..., length, ...] with zeros on the left of one dimension; itself where it has this length already.

    Args:
        dim: counted from the last, which is -1.
    """
    padding = length - x.shape[dim]
    return pad(x, (0, 0) * (-1 - dim) + (padding, 0)) if padding else x


def unpack(batch: TreeBatch) -> tuple[list[Tensor], list[int]]:
    """Sequences [T], prompt and response, of a packed row's candidates, and their prompts' lengths in tokens."""
    sequences, prompts = [], []
    start = 0
    for branch in batch.branches:
        prompt = batch.input_ids[start : start + branch.prompt]
        start += branch.prompt
        for n in branch.responses:
            sequences.append(torch.cat([prompt, batch.input_ids[start : start + n]]))
            prompts.append(branch.prompt)
            start += n
    return sequences, prompts
