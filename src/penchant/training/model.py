"""The model of a run: loaded, given adapters or a head as the configuration asks, and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from penchant.config import RunConfig
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distribution import World, shard
from penchant.engine.loading import check_vocabulary, load_model
from penchant.engine.policy import Policy
from penchant.engine.reference_cache import model_fingerprint
from penchant.engine.scoring import Scorer, choose_scorer, sample_groups

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Trained:
    """What is trained.

    Attributes:
        scorer: says log-probs (or rewards) of candidates; sharded over the world.
        fingerprint: of the weights training starts from.
        dtype: of the weights on disk.
    """

    policy: Policy
    scorer: Scorer
    fingerprint: str
    dtype: torch.dtype

    def save(self, folder: Path, world: World) -> None:
        """Write it, in Hugging Face's or PEFT's format."""
        self.policy.save(folder, self.scorer, world, self.dtype)


def load_trained(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[TokenizedGroup],
    world: World,
    tell: Callable[[str], None],
) -> Trained:
    """The model to train, on this process's device.

    Args:
        groups: of the run; a few of them show whether the tree is exact for this model.
    """
    saved = torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32
    # Trained weights are float32 masters; under LoRA the frozen ones are held in the run's dtype.
    loaded = saved if config.lora is not None else torch.float32
    policy = Policy(load_model(config.model, dtype=loaded), tokenizer)
    policy.model.to(world.device)
    check_vocabulary(policy.model, tokenizer, config.model)
    fingerprint = model_fingerprint(policy.model)
    choice = choose_scorer(policy.model, sample_groups(groups))
    if choice.notice:
        tell(choice.notice)
    scorer = choice.scorer
    if config.lora is not None:
        # Adapters start from random numbers, which must be the same on every process and in every start.
        torch.manual_seed(config.training.seed)
        policy.add_lora(
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=config.lora.targets,
        )
    if config.training.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    scorer.train()
    shard(scorer, world)
    return Trained(policy, scorer, fingerprint, saved)
