"""Held-out preference metrics of a reward model, and the choice that `penchant evaluate` makes between both kinds."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenized import TokenizedGroup
from penchant.engine.distributed import World, shard
from penchant.engine.reference_model import FrozenModel
from penchant.engine.scorer_choice import choose_reward_scorer, sample_groups
from penchant.engine.scoring import score_groups
from penchant.errors import ConfigError
from penchant.evaluation.held_out import Reading, read_held_out, score
from penchant.evaluation.orders import REWARD, definitions
from penchant.evaluation.preference_pairs import PreferencePairs, flatten_groups
from penchant.evaluation.preferences import (
    PreferenceReport,
    evaluate_preferences,
    pair_report,
    ties_and_length,
    write_per_example,
)
from penchant.evaluation.statistics import require_finite
from penchant.models.loading import check_vocabulary, load_tokenizer
from penchant.models.model_kind import ModelKind, model_kind
from penchant.models.reward_model import load_reward_model
from penchant.storage.files import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardedGroup:
    """A group with the rewards of its K candidates.

    Attributes:
        rewards: K outputs of the model's head.
        tokens: K token counts of the candidates, end-of-turn included.
        prompt_tokens: number of tokens of the prompt.
    """

    group: PreferenceGroup
    rewards: tuple[float, ...]
    tokens: tuple[int, ...]
    prompt_tokens: int


def score_rewards(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    reading: Reading,
) -> list[RewardedGroup]:
    """Rewards of every candidate by a reward model of one output, on this process's device.

    Args:
        model: folder or hub id.

    Raises:
        PenchantError: the model cannot be loaded or has several outputs; or rows do not fit.
    """
    tokenizer = load_tokenizer(model, chat_template=reading.chat_template)
    loaded = load_reward_model(model, dtype=getattr(torch, reading.dtype)).to(world.device)
    check_vocabulary(loaded, tokenizer, model)
    if loaded.config.num_labels != 1 or not hasattr(loaded, "score"):
        raise ConfigError(
            f"the classifier {type(loaded).__name__} has {loaded.config.num_labels} outputs: {loaded.config.id2label}; "
            "a causal reward model with one output is measured",
            where=model,
            fix=f"rank by one of its outputs: penchant rank {model} --data FILE --by reward --label 0",
        )
    tokenized, row_notes = read_held_out(FrozenModel(loaded, tokenizer, reading.rendering), model, groups, reading)
    choice = choose_reward_scorer(loaded, sample_groups(tokenized), reading.dtype)
    for note in [*row_notes, *choice.notes]:
        logger.info(note)
    shard(choice.scorer, world)
    rewards = score_groups(choice.scorer, tokenized, world=world, budget=reading.token_budget, dtype=reading.dtype)
    return [_rewarded(group, numbers) for group, numbers in zip(tokenized, rewards, strict=True)]


def evaluate_rewards(rewarded: Sequence[RewardedGroup], *, resamples: int = 2000, seed: int = 0) -> PreferenceReport:
    """Accuracy, AUC and margin of rewards, each with a 95 % interval over prompts; means as `evaluate_preferences`.

    Raises:
        ModelError: a reward is not finite.
    """
    _require_finite(rewarded)
    paired_rows = [row for row in rewarded if row.group.pairs]
    groups = [row.group for row in paired_rows]
    pairs = PreferencePairs.from_groups(groups, resamples, seed)
    rewards, tokens = (
        flatten_groups([row.rewards for row in paired_rows]),
        flatten_groups([row.tokens for row in paired_rows]),
    )
    metrics = {**pairs.compare(rewards), **ties_and_length(pairs, rewards, tokens)}
    unpaired = len(rewarded) - len(paired_rows)
    return pair_report(groups, unpaired, pairs, rewards, metrics, definitions(metrics, {"": REWARD}))


def write_rewards(rewarded: Sequence[RewardedGroup], path: Path) -> None:
    """Write a JSON line for each group: ``id``, ``prompt_tokens``, and each candidate's reward and tokens.

    Raises:
        ModelError: a reward is not finite.
        ConfigError: the file cannot be written.
    """
    _require_finite(rewarded)
    lines = []
    for row in rewarded:
        numbers = zip(row.rewards, row.tokens, strict=True)
        candidates = [{"reward": reward, "tokens": tokens} for reward, tokens in numbers]
        line = {"id": row.group.id, "prompt_tokens": row.prompt_tokens, "candidates": candidates}
        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    write_atomically(path, "".join(lines))


def _rewarded(group: TokenizedGroup, rewards: Sequence[float]) -> RewardedGroup:
    return RewardedGroup(group.group, tuple(rewards), tuple(map(len, group.responses)), len(group.prompt))


def _require_finite(rewarded: Sequence[RewardedGroup]) -> None:
    for row in rewarded:
        require_finite(row.rewards, "the reward of candidate", f"group {row.group.id}")


BETA = 0.1
"""Default scale of the implicit reward in `calibration`."""


def measure_model(
    model: str,
    groups: Sequence[PreferenceGroup],
    world: World,
    *,
    reference: str | None = None,
    beta: float | None = None,
    reading: Reading,
    per_example: Path | None = None,
) -> PreferenceReport | None:
    """Held-out metrics of a language model or a reward model; None except on the main process.

    Args:
        model: folder, hub id or GGUF file.
        reference, beta: reference model and scale of a language model's implicit rewards.
        per_example: file to write, with a JSON line for every group.

    Raises:
        PenchantError: a model or the data is invalid, or a reward model is given settings that belong to log-probs.
    """
    kind = model_kind(model)
    if kind.is_reward_model:
        _refuse_implicit(model, kind, reference, beta, reading)
        rewarded = score_rewards(model, groups, world, reading=reading)
        if world.is_main and per_example is not None:
            write_rewards(rewarded, per_example)
        return evaluate_rewards(rewarded) if world.is_main else None
    for head in kind.heads:
        flag = "" if head == "preference_head" else f" --head {head}"
        logger.info(
            f"the folder holds a preference head, {head}; the language model is measured here, and the head by: "
            f"penchant rank {model} --data FILE --by head{flag}"
        )
    scored = score(model, groups, world, reference=reference, reading=reading)
    if world.is_main and per_example is not None:
        write_per_example(scored, per_example)
    return evaluate_preferences(scored, beta=beta or BETA) if world.is_main else None


def _refuse_implicit(model: str, kind: ModelKind, reference: str | None, beta: float | None, reading: Reading) -> None:
    without_effect = {
        "--reference": reference is not None,
        "--beta": beta is not None,
        "--learn all": reading.rendering.learn == "all",
    }
    flags = " and ".join(flag for flag, present in without_effect.items() if present)
    if flags:
        raise ConfigError(
            f"{flags}: this is a reward model ({kind.architecture}), whose rewards are measured as they are; a "
            "reference, beta and turns belong to a language model's log-probs",
            where=model,
            fix=f"leave {flags} out",
        )
