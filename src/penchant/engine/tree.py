"""The fast path: candidates' log-probs from one packed row, each prompt computed once, by a model put on the tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from penchant.data.tokenized import TokenizedGroup
from penchant.data.trees import TreeBatch, pack, with_prompts_first
from penchant.engine.attention import TREE, tree_attention
from penchant.engine.device import has_flash_attention, to_float64
from penchant.engine.kernels.layer_fusion import fuse_layers
from penchant.engine.kernels.linear_log_probs import SharedGradient, compute_dtype, embed, is_tied, row_multiple
from penchant.engine.kernels.shared_prompts import has_flash_operators
from penchant.engine.output_head import head_log_probs
from penchant.engine.scoring import PackedScorer
from penchant.engine.tree_plan import TreePlan
from penchant.models.multimodal import language_model, set_attention, text_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def use_tree(model: PreTrainedModel) -> None:
    """Give a model the tree's attention and fused layers; it then computes packed rows only."""
    from transformers import AttentionInterface

    AttentionInterface.register(TREE, tree_attention)
    set_attention(model, TREE)
    fuse_layers(model)


class TreeScorer(PackedScorer):
    """Log-probs of candidates by the tree.

    The head is applied inside this module's forward, so that a sharded root has gathered its (perhaps tied) weights
    and hooks, checkpointing and LoRA on the layers see an ordinary module.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def cost(self, group: TokenizedGroup) -> int:
        """Tokens the group takes in a micro-batch: its prompt once, and its candidates."""
        return group.length

    def collate(self, groups: Sequence[TokenizedGroup], temperature: float) -> TreeBatch:
        """The groups as one row, on a GPU with all prompts first where that row's attention needs nothing else."""
        return reorder_for_attention(pack(groups, temperature), self.model)

    def forward(self, batch: TreeBatch) -> Tensor:
        """Summed log-probs [G, K], nats: tokens in float32 or better, sums `to_float64`; 0 in empty slots."""
        return self.forward_with_hidden(batch)[0]

    def forward_with_hidden(self, batch: TreeBatch) -> tuple[Tensor, Tensor]:
        """Summed log-probs [G, K], and the last hidden state of each candidate's last token [C, D]."""
        head = self.model.get_output_embeddings()
        shared = SharedGradient() if is_tied(self.model.get_input_embeddings(), head) else None
        hidden = last_hidden(self.model, batch, shared)
        token_log_probs = head_log_probs(
            head,
            # A prompt's last token predicts the first of every candidate: on a GPU the backward of `index_select` adds
            # their gradients in no fixed order, that of an index does.
            hidden[batch.source] if hidden.is_cuda else hidden.index_select(0, batch.source),
            batch.targets,
            softcap=getattr(text_config(self.model.config), "final_logit_softcapping", None),
            shared=shared,
            temperature=batch.temperature,
        )
        # A sum of -1000 nats has a precision of 6e-5 in float32, worse than the rounding of all its tokens.
        exact_log_probs = to_float64(token_log_probs)
        paths, lengths = batch.paths.to(exact_log_probs.device), batch.lengths.to(exact_log_probs.device)
        sums = torch.segment_reduce(exact_log_probs.index_select(0, paths), "sum", lengths=lengths)
        return batch.to_group_matrix(sums), hidden.index_select(0, batch.ends)


def reorder_for_attention(batch: TreeBatch, model: PreTrainedModel) -> TreeBatch:
    """The batch in the order of tokens that this model's attention computes fastest.

    Where there is flash attention all prompts come first, unless a soft-cap or a window narrower than the longest
    sequence needs a row that lies group after group, or torch lacks the operators of the other row.
    """
    config = text_config(model.config)
    window = getattr(config, "sliding_window", None)
    longest = max(branch.prompt + max(branch.responses, default=0) for branch in batch.branches)
    plain = getattr(config, "attn_logit_softcapping", None) is None and (window is None or window >= longest)
    has_kernel = has_flash_attention(model.device) and has_flash_operators()
    return with_prompts_first(batch) if plain and has_kernel else batch


def last_hidden(model: PreTrainedModel, batch: TreeBatch, shared: SharedGradient | None = None) -> Tensor:
    """Last hidden states [T, D] of the packed row; of a prompt only the last token's is defined.

    Args:
        shared: the object that the head of a tied embedding gets too.
    """
    embedding = model.get_input_embeddings()
    multiple = row_multiple(batch.input_ids.device, compute_dtype(next(embedding.parameters())))
    if batch.prompts_first is not None:
        multiple = 1  # Its segments end with its tokens.
    filled = batch.pad_to_multiple(multiple)
    ids: dict[str, Tensor] = {"input_ids": filled.input_ids[None]}
    if shared is not None:
        ids = {"inputs_embeds": embed(filled.input_ids[None], embedding.weight, embedding.padding_idx, shared)}
    hidden: Tensor = language_model(model)(
        **ids,
        position_ids=filled.positions[None],
        use_cache=False,
        tree=TreePlan(filled, multiple),
    ).last_hidden_state.squeeze(0)
    return hidden
