"""A run's data: read, scored, checked against what the objective needs, and tokenized before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from penchant.config.objective import code_runs
from penchant.config.run import RunConfig
from penchant.config.run_sections import DataConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.label_noise import add_label_noise
from penchant.data.reading import GroupSet, read_groups
from penchant.data.splitting import split_by_prompt
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizationReport, TokenizedGroup
from penchant.engine.device import local_device
from penchant.engine.reference_model import NO_LIMIT
from penchant.errors import ConfigError, DataError, locate_errors, rename_options_in_errors
from penchant.objectives import FittedObjective, Objective
from penchant.storage.fingerprints import hash_parts
from penchant.training.batches import group_tensors
from penchant.training.log import direction
from penchant.training.needs import (
    check_head,
    check_models,
    check_references,
    check_sampled,
    filter_learnable_groups,
    fit_state,
)
from penchant.training.sampled import prompts_to_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """A run's data.

    Attributes:
        train: groups to learn from; where candidates are sampled, one for each prompt to answer.
        notes: the detected format, and counts of changed or dropped rows.
        fingerprint: hash of all groups with their preferences and token ids.
        reference_held_out: groups that the objective's state is fitted to; empty where nothing is fitted.
    """

    train: list[TokenizedGroup]
    held_out: list[TokenizedGroup]
    notes: list[str]
    fingerprint: str
    reference_held_out: list[TokenizedGroup] = field(default_factory=list)


@dataclass(frozen=True)
class DataParts:
    """A run's groups as read: no prompt of `reference_held_out` is in the other two.

    Attributes:
        notes: the detected formats, and the sizes of the parts.
    """

    train: list[PreferenceGroup]
    held_out: list[PreferenceGroup]
    reference_held_out: list[PreferenceGroup]
    notes: list[str]


def read_inputs(config: RunConfig) -> DataParts:
    """Training groups, held-out groups, and those that reference weights are fitted to.

    Raises:
        DataError: a file cannot be read, a share leaves a part empty, or the third part has a prompt of the others.
    """
    data = config.data
    training_set = _read(data, data.train, data.split)
    train, notes = list(training_set.groups), list(training_set.notes)
    held_out: list[PreferenceGroup] = []
    if isinstance(data.held_out, float):
        with locate_errors(data.train):
            train, held_out = split_by_prompt(train, held_out=data.held_out, seed=config.training.seed)
        notes.append(f"held out {len(held_out)} of {len(training_set.groups)} groups, by prompt")
    elif data.held_out is not None or data.held_out_split is not None:
        with rename_options_in_errors({"data.split": "data.held_out_split"}):
            held_out_set = _read(data, data.held_out or data.train, data.held_out_split)
        held_out = list(held_out_set.groups)
        notes += held_out_set.notes
    reference_held_out: list[PreferenceGroup] = []
    if isinstance(data.reference_held_out, float):
        share = data.reference_held_out / (1 - (data.held_out if isinstance(data.held_out, float) else 0.0))
        try:
            train, reference_held_out = split_by_prompt(train, held_out=share, seed=config.training.seed)
        except DataError as error:
            prompts = len({as_text(group.prompt) for group in train})
            raise DataError(
                f"data.reference_held_out is {data.reference_held_out}: of {prompts} prompts to train on it takes "
                "none, or all",
                where=data.train,
                fix="raise or lower it, or name a file of other pairs",
            ) from error
        notes.append(
            f"held out {len(reference_held_out)} of {len(training_set.groups)} groups for reference weights, by prompt"
        )
    elif data.reference_held_out is not None:
        group_set = _read(data, data.reference_held_out, None)
        reference_held_out = list(group_set.groups)
        notes += group_set.notes
        _refuse_shared_prompts(reference_held_out, train, held_out, data.reference_held_out)
    return DataParts(train, held_out, reference_held_out, notes)


def _refuse_shared_prompts(
    groups: Sequence[PreferenceGroup],
    train: Sequence[PreferenceGroup],
    held_out: Sequence[PreferenceGroup],
    source: str,
) -> None:
    prompts = {as_text(group.prompt) for group in groups}
    for use, other_groups in (("trained on", train), ("tested on", held_out)):
        shared = prompts & {as_text(group.prompt) for group in other_groups}
        if shared:
            raise DataError(
                f"{len(shared)} of the {len(prompts)} prompts of data.reference_held_out are {use}",
                where=source,
                fix="name a file of other prompts, or a share of data.train: data.reference_held_out=0.1",
            )


def tokenize_inputs(config: RunConfig, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Inputs:
    """Read a run's data, score it where the run has a reward, and tokenize it.

    Args:
        context: maximum tokens of the model; the limit where the configuration sets none.

    Raises:
        PenchantError: the data cannot be read, or the objective cannot learn from it.
    """
    data = config.data
    if data.max_length and context and data.max_length > context:
        raise ConfigError(
            f"data.max_length is {data.max_length}, the model's context is {context} tokens",
            fix=f"data.max_length={context}, or leave it out",
        )
    limit = data.max_length or context or NO_LIMIT
    parts = read_inputs(config)
    train, held_out, notes = parts.train, parts.held_out, parts.notes
    held_out_source = data.held_out if isinstance(data.held_out, str) else data.train
    if held_out and config.evaluation.every:
        _check_metric(config.evaluation.metric, config.built_objective, len(config.reference_sources))
    if config.candidates == "given":
        train = filter_learnable_groups(config, _scored(config, train), "training", data.train, notes)
        train = _with_label_noise(config, train, data.train, notes)
    if held_out:
        held_out = filter_learnable_groups(config, _scored(config, held_out), "held-out", held_out_source, notes)
    fitting: list[PreferenceGroup] = []
    fitting_source = data.reference_held_out if isinstance(data.reference_held_out, str) else data.train
    if config.built_objective.needs.fitting_pairs:
        scored = _scored(config, parts.reference_held_out)
        fitting = filter_learnable_groups(config, scored, "reference-held-out", fitting_source, notes)
    elif parts.reference_held_out:
        notes.append(
            f"{config.built_objective.name} fits no weights to data.reference_held_out; its groups are not trained on"
        )
    tokenized_parts: list[list[TokenizedGroup]] = []
    sources = (
        ("training", train, data.train),
        ("held-out", held_out, held_out_source),
        ("reference-held-out", fitting, fitting_source),
    )
    for name, groups, source in sources:
        if not groups:
            tokenized_parts.append([])
            continue
        with locate_errors(source):
            if name == "training" and config.candidates == "sampled":
                tokenized, report = prompts_to_answer(config, groups, tokenizer, limit)
            else:
                tokenized, report = tokenize_groups(
                    groups,
                    tokenizer,
                    max_length=limit,
                    rendering=config.rendering,
                    truncation=data.truncation,
                    empty=data.empty,
                    identical=data.identical,
                )
        notes += report_notes(name, report)
        tokenized_parts.append(tokenized)
    fingerprint = _fingerprint([group for part in tokenized_parts for group in part])
    return Inputs(tokenized_parts[0], tokenized_parts[1], notes, fingerprint, tokenized_parts[2])


def check_inputs(config: RunConfig, train: list[PreferenceGroup], held_out: list[PreferenceGroup]) -> None:
    """Check a run's groups against what the objective needs, as training does, without scoring or tokenizing them.

    A reward is assumed to give different scores to candidates without preferences.

    Raises:
        PenchantError: as training would.
    """
    check_sampled(config, 1)
    check_head(config)
    check_models(config)
    check_references(config)
    if held_out and config.evaluation.every:
        _check_metric(config.evaluation.metric, config.built_objective, len(config.reference_sources))
    train_groups = train if config.candidates == "given" else []
    for name, groups in (("training", train_groups), ("held-out", held_out)):
        if groups:
            scored = groups if config.reward is None else [_foreseen(group) for group in groups]
            learnable = filter_learnable_groups(config, scored, name, f"{name} groups", [])
            if name == "training":
                _with_label_noise(config, learnable, f"{name} groups", [])


def _with_label_noise(
    config: RunConfig, groups: list[PreferenceGroup], source: str, notes: list[str]
) -> list[PreferenceGroup]:
    """The training groups with the share of reversed labels that the configuration asks for, counted in `notes`."""
    share, seed = config.data.label_noise, config.training.seed
    if not share:
        return groups
    with locate_errors(source):
        noisy, count = add_label_noise(groups, share, seed)
    notes.append(
        f"training: {count} of {len(groups)} groups have their label reversed "
        f"(data.label_noise={share}, training.seed={seed})"
    )
    return noisy


def _foreseen(group: PreferenceGroup) -> PreferenceGroup:
    if group.pairs:
        return group
    return replace(group, comparisons=None, scores=tuple(float(k) for k in range(len(group.candidates))))


def report_notes(name: str, report: TokenizationReport) -> list[str]:
    """Lines on the rows that were changed or dropped, prefixed with the part's name."""
    return [f"{name}: {line}" for line in report.lines()]


def _read(data: DataConfig, source: str, split: str | None) -> GroupSet:
    return read_groups(source, format=data.format, split=split, columns=data.columns, max_bytes=data.max_bytes)


def _scored(config: RunConfig, groups: list[PreferenceGroup]) -> list[PreferenceGroup]:
    """The groups with the run's reward as their scores; existing preferences stay."""
    if config.reward is None or not groups:
        return groups
    if not code_runs():
        return [_foreseen(group) for group in groups]
    from penchant.evaluation.held_out import Reading
    from penchant.evaluation.rewards import open_reward
    from penchant.evaluation.score_file import with_scores

    reading = Reading(token_budget=config.training.unplanned_token_budget, rendering=config.rendering)
    reward = open_reward(config.reward, device=local_device(), reading=reading)
    logger.info(f"scores of {len(groups)} groups by {reward.name}")
    return with_scores(groups, reward)


def _check_metric(metric: str, objective: Objective, references: int) -> None:
    """Refuse a metric that the objective does not return for a pair, or that is better neither higher nor lower."""
    tensors = group_tensors([PreferenceGroup("", ("a", "b"), preferred=0)], [[1, 1]])
    tensors = replace(tensors, rewards=torch.zeros(1, 2))
    zeros = torch.zeros(references, 1, 2)
    state = objective.initial_state(seed=0)
    if isinstance(objective, FittedObjective):
        state = fit_state(objective, zeros, tensors, state)
    output = objective.evaluate(torch.zeros(1, 2), zeros, tensors, state)
    names = ["loss", *output.metrics]
    fix = f"one of: {', '.join(name for name in names if direction(name) is not None)}"
    if metric not in names:
        raise ConfigError(f"evaluation.metric is {metric!r}, which {objective.name} does not have", fix=fix)
    if direction(metric) is None:
        raise ConfigError(f"evaluation.metric is {metric!r}, which is better neither higher nor lower", fix=fix)


def _fingerprint(groups: Sequence[TokenizedGroup]) -> str:
    def parts() -> Iterator[bytes]:
        for tokenized in groups:
            group = tokenized.group
            facts = (group.id, group.pairs, group.scores, group.labels, group.weight, group.source)
            yield repr(facts).encode()
            for ids in (tokenized.prompt, *tokenized.responses):
                yield len(ids).to_bytes(8, "little") + ids.tobytes()
            for mask in tokenized.loss_masks or ():
                yield b"learnt " + mask.tobytes()

    return hash_parts(parts()).hex()
