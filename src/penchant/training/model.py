"""The trained model of a run: its dtype, loading, adapters and preference head, saving."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from penchant.config.run import RunConfig
from penchant.config.run_sections import Dtype, DtypeChoice
from penchant.data.special_tokens import SpecialTokens
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.device import best_dtype, require_dtype
from penchant.engine.distributed import World, shard
from penchant.engine.output_head import lora_rank
from penchant.engine.padded import PaddedScorer
from penchant.engine.policy import Policy
from penchant.engine.reward_scorers import HeadedScorer, TreeRewardScorer, require_end_tokens
from penchant.engine.scorer_choice import (
    LanguageScorer,
    choose_reward_scorer,
    choose_scorer,
    compile_scorer,
    sample_groups,
)
from penchant.engine.scoring import Scorer
from penchant.engine.tree import TreeScorer
from penchant.engine.working_weights import working_weights
from penchant.errors import ConfigError
from penchant.models.loading import check_vocabulary, load_model
from penchant.models.multimodal import text_config
from penchant.models.preference_head import PreferenceHead, save_head
from penchant.models.reward_model import start_reward_model
from penchant.models.saving import SavedDtype, saved_dtype
from penchant.models.source_checkpoint import checkpoint_of
from penchant.models.special_tokens import TrainedResponses, set_pad_token
from penchant.objectives import Objective, WeightedSum
from penchant.objectives import PreferenceHead as PreferenceHeadLoss
from penchant.storage.fingerprints import model_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The model that is trained.

    Attributes:
        scorer: computes log-probs or rewards of candidates; sharded over the world.
        fingerprint: hash of the weights that training starts from.
        dtype: dtype of the saved weights.
        notes: notes on the checkpoint and the scorer, which are logged.
    """

    policy: Policy
    scorer: Scorer
    fingerprint: str
    dtype: SavedDtype
    notes: tuple[str, ...]

    def save(self, folder: Path, world: World) -> None:
        """Write the model in Hugging Face's or PEFT's format, and a preference head beside it."""
        self.policy.save(folder, self.scorer, world, self.dtype)
        if isinstance(self.scorer, HeadedScorer) and world.is_main:
            save_head(folder, self.scorer.head)


def load_trained(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    groups: Sequence[TokenizedGroup],
    world: World,
) -> Trained:
    """The model to train, on this process's device.

    Args:
        groups: groups of the run; a few of them are used to check that the tree is exact for this model.

    Raises:
        PenchantError: the model cannot be loaded, or cannot be trained with this configuration.
    """
    loaded = weights_dtype(config)
    # A fresh head and adapters start from random numbers, the same on every process and in every start.
    torch.manual_seed(config.training.seed)
    rewards = config.built_objective.needs.trains == "rewards"
    load = start_reward_model if rewards else load_model
    policy = Policy(load(config.model, dtype=loaded), tokenizer)
    policy.model.to(world.device)
    checkpoint = checkpoint_of(policy.model)
    check_vocabulary(policy.model, tokenizer, config.model)
    if rewards:
        # Under LoRA a further row of the embedding would not be saved in the adapter's folder.
        set_pad_token(policy.model, tokenizer, grow=config.lora is None)
    fingerprint = model_fingerprint(policy.model)
    sample = sample_groups(groups)
    dtype = config.training.resolved_dtype
    choice = (choose_reward_scorer if rewards else choose_scorer)(policy.model, sample, dtype)
    logger.debug(f"scored by {type(choice.scorer).__name__} in {dtype} on {world.device}")
    notes = tuple(note for note in (checkpoint and checkpoint.notice, choice.notice) if note)
    for note in notes:
        logger.info(note)
    torch.manual_seed(config.training.seed)
    adapt(config, policy)
    scorer: Scorer = choice.scorer
    if config.built_objective.needs.head:
        scorer = _headed(config, policy, scorer, groups, world)
    if world.device.type == "cuda" and isinstance(choice.scorer, (TreeScorer, TreeRewardScorer)):
        weights = working_weights(choice.scorer, world.device, dtype, world.size)
        if notice := compile_scorer(choice.scorer.train(), sample, dtype, weights, choice.rounding):
            logger.warning(notice)
            notes = (*notes, notice)
    scorer.train()
    shard(scorer, world)
    return Trained(policy, scorer, fingerprint, _saved_dtype(config, policy), notes)


def _saved_dtype(config: RunConfig, policy: Policy) -> SavedDtype:
    """The dtype of the saved weights: with ``auto`` float32 for adapters, else that of the starting model."""
    choice = config.training.save_dtype
    adapters = config.lora is not None and choice == "auto"
    return saved_dtype(policy.model, config.model, "float32" if adapters else choice)


def trained_responses(config: RunConfig, groups: Sequence[TokenizedGroup]) -> TrainedResponses | None:
    """The lengths and end tokens of the trained responses; None where the language model is not trained."""
    if config.built_objective.needs.trains == "rewards" or config.head.freeze_backbone or not groups:
        return None
    trained = TrainedResponses.from_groups(groups)
    if config.candidates == "given":
        return trained
    tokens = config.sampling.max_new_tokens
    return replace(trained, shortest=1, longest=tokens, sequence=max(len(group.prompt) for group in groups) + tokens)


def weights_dtype(config: RunConfig) -> torch.dtype:
    """The dtype of the loaded weights: float32 where they are trained; the run's dtype for frozen ones under LoRA."""
    dtype: torch.dtype = torch.float32 if config.lora is None else getattr(torch, config.training.resolved_dtype)
    return dtype


def adapt(config: RunConfig, policy: Policy) -> None:
    """Add the configured adapters and gradient checkpointing to a policy's model."""
    if config.lora is not None:
        policy.add_lora(
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            targets=config.lora.targets,
            task="SEQ_CLS" if config.built_objective.needs.trains == "rewards" else "CAUSAL_LM",
        )
    if config.training.gradient_checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def copy_trained_weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of every trained parameter by its name, in the parameter's shape."""
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def add_head(config: RunConfig, policy: Policy, scorer: LanguageScorer) -> HeadedScorer:
    """The scorer with a new preference head, on the default device.

    Raises:
        ConfigError: adapters are on the output head, and no loss uses its log-probs.
    """
    if lora_rank(policy.model.get_output_embeddings()) and not _reads_log_probs(config.built_objective):
        raise ConfigError(
            "lora.targets names the output head, and a preference head reads the hidden states before it: "
            "its adapter would never change",
            fix="leave it out of lora.targets, or add a loss of log-probs with objective.name=weighted_sum",
        )
    head = PreferenceHead(text_config(policy.model.config).hidden_size, config.head.pooling, config.head.dropout)
    if config.head.freeze_backbone:
        policy.model.requires_grad_(False)
    return HeadedScorer(scorer, head)


def _reads_log_probs(objective: Objective) -> bool:
    """Whether a loss depends on log-probs."""
    if isinstance(objective, WeightedSum):
        return any(_reads_log_probs(part.objective) for part in objective.parts if part.weight)
    return not isinstance(objective, PreferenceHeadLoss)


def _headed(
    config: RunConfig, policy: Policy, scorer: Scorer, groups: Sequence[TokenizedGroup], world: World
) -> HeadedScorer:
    if world.size > 1:
        raise ConfigError("a preference head is trained in one process", fix="start it without torchrun")
    assert isinstance(scorer, (TreeScorer, PaddedScorer))
    require_end_tokens(groups, sorted(SpecialTokens.from_tokenizer(policy.tokenizer).ends))
    headed = add_head(config, policy, scorer)
    headed.head.to(world.device)
    return headed


def choose_dtype(choice: DtypeChoice, device: torch.device) -> Dtype:
    """The dtype of a run's matrix products on a device; ``auto`` becomes the best one.

    Raises:
        ConfigError: the configured dtype does not run on the device.
    """
    if choice != "auto":
        require_dtype(choice, device)
        return choice
    dtype = best_dtype(device)
    if dtype == "float16":
        logger.info(
            "training.dtype: auto is float16 with a scaled loss here, as this card has no bfloat16 (compute capability "
            "below 8.0)"
        )
    return dtype
