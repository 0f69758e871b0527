"""From a configuration to tokenized groups, checked against what the objective needs before a model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from penchant.config import DataConfig, RunConfig
from penchant.data.groups import PreferenceGroup
from penchant.data.reading import GroupSet, read_groups
from penchant.data.splitting import split_by_prompt
from penchant.data.tokenization import tokenize_groups
from penchant.data.tokenized import TokenizationReport, TokenizedGroup
from penchant.engine.frozen import NO_LIMIT
from penchant.errors import ConfigError, DataError, located
from penchant.objectives import Objective
from penchant.training.batches import group_facts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Inputs:
    """A run's data.

    Attributes:
        notes: what was detected, and what happened to rows.
        fingerprint: a hash of every group, its facts and its token ids.
    """

    train: list[TokenizedGroup]
    held_out: list[TokenizedGroup]
    notes: list[str]
    fingerprint: str


def read_inputs(config: RunConfig) -> tuple[list[PreferenceGroup], list[PreferenceGroup], list[str]]:
    """Training groups, held-out groups, and what was detected; fails where the objective lacks what it needs."""
    data = config.data
    read = _read(data, data.train, data.split)
    train, notes = list(read.groups), list(read.notes)
    held_out: list[PreferenceGroup] = []
    if isinstance(data.held_out, float):
        with located(data.train):
            train, held_out = split_by_prompt(train, held_out=data.held_out, seed=config.training.seed)
        notes.append(f"held out {len(held_out)} of {len(read.groups)} groups, by prompt")
    elif data.held_out is not None or data.held_out_split is not None:
        other = _read(data, data.held_out or data.train, data.held_out_split)
        held_out = list(other.groups)
        notes += other.notes
    objective = config.method
    if held_out and config.evaluation.every:
        _check_metric(config.evaluation.metric, objective)
    train = _usable(objective, train, "training", data.train, notes)
    if held_out:
        held_out = _usable(objective, held_out, "held-out", str(data.held_out or data.held_out_split), notes)
    return train, held_out, notes


def tokenize_inputs(config: RunConfig, tokenizer: PreTrainedTokenizerBase, context: int | None) -> Inputs:
    """Read and tokenize a run's data.

    Args:
        context: tokens the model was made for; the limit where the configuration sets none.
    """
    data = config.data
    if data.max_length and context and data.max_length > context:
        raise ConfigError(
            f"data.max_length is {data.max_length}, the model's context is {context} tokens",
            fix=f"data.max_length={context}, or leave it out",
        )
    limit = data.max_length or context or NO_LIMIT
    train, held_out, notes = read_inputs(config)
    kept: list[list[TokenizedGroup]] = []
    other = data.held_out if isinstance(data.held_out, str) else data.train
    for name, groups, source in (("training", train, data.train), ("held-out", held_out, other)):
        if not groups:
            kept.append([])
            continue
        with located(source):
            tokenized, report = tokenize_groups(
                groups,
                tokenizer,
                max_length=limit,
                truncation=data.truncation,
                empty=data.empty,
                identical=data.identical,
            )
        notes += report_notes(name, report)
        kept.append(tokenized)
    return Inputs(kept[0], kept[1], notes, _fingerprint([*kept[0], *kept[1]]))


def report_notes(name: str, report: TokenizationReport) -> list[str]:
    """What happened to the rows, a line each."""
    lines = []
    for event, count in sorted(report.counts.items()):
        ids = report.examples.get(event, [])
        shown = ", ".join(ids) + (", ..." if count > len(ids) else "")
        lines.append(f"{name}: {event.replace('_', ' ')}: {count} of {report.groups} groups ({shown})")
    return lines


def _read(data: DataConfig, source: str, split: str | None) -> GroupSet:
    return read_groups(source, format=data.format, split=split, columns=data.columns)


def _check_metric(metric: str, objective: Objective) -> None:
    """Refuse a metric the objective does not have, by asking it for those of one pair."""
    ids = np.zeros(1, np.int64)
    pair = group_facts([TokenizedGroup(ids, (ids, ids), PreferenceGroup("", ("a", "b"), preferred=0))])
    nothing = torch.zeros(objective.references, 1, 2)
    output, _ = objective(torch.zeros(1, 2), nothing, pair, objective.initial_state())
    if metric not in ("loss", *output.metrics):
        raise ConfigError(
            f"evaluation.metric is {metric!r}, which {objective.name} does not have",
            fix=f"one of: {', '.join(['loss', *output.metrics])}",
        )


def _usable(
    objective: Objective, groups: list[PreferenceGroup], name: str, source: str, notes: list[str]
) -> list[PreferenceGroup]:
    """The groups the objective can learn from; those it cannot are counted, and an error where none is left."""
    small = [g for g in groups if len(g.candidates) < objective.min_candidates]
    if small:
        raise DataError(
            f"{objective.name} compares at least {objective.min_candidates} candidates, "
            f"{len(small)} of {len(groups)} groups have fewer (first: {_ids(small)})",
            where=source,
            fix="use data with a chosen and a rejected response, or an objective for single responses: "
            "objective.name=sft",
        )
    if not objective.needs_pairs:
        return groups
    paired = [g for g in groups if g.pairs]
    if not paired:
        raise DataError(
            f"{objective.name} learns from preferences, and no group says which candidate is better",
            where=source,
            fix="add scores, ranks or a preferred index to the rows; see `penchant data check`",
        )
    if len(paired) < len(groups):
        notes.append(f"{name}: {len(groups) - len(paired)} of {len(groups)} groups left out: all candidates tie")
    return paired


def _ids(groups: Sequence[PreferenceGroup]) -> str:
    return ", ".join(group.id for group in groups[:5])


def _fingerprint(groups: Sequence[TokenizedGroup]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tokenized in groups:
        group = tokenized.group
        known = (group.id, group.pairs, group.scores, group.labels, group.weight, group.source)
        digest.update(repr(known).encode())
        for ids in (tokenized.prompt, *tokenized.responses):
            digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.hexdigest()
