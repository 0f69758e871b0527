"""The first stage: the text to train on, and every set of groups split into training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.data.writing import write_anew
from penchant.errors import DataError, locate_errors
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.stages import StageResult
from penchant.recipes.texts import clean_passages, read_passages, split_by_section, text_groups

SETS = ("instructions", "preferences", "tasks")
PARTS = ("train", "validation", "test")


def prepare(config: DomainExpertConfig, folder: Path) -> StageResult:
    """Write the texts in two parts and every set of groups in three; the result counts what was left out."""
    rules = config.texts
    passages = read_passages(rules.file, text=rules.text, section=rules.section)
    excluded = [] if rules.excluded is None else [passage.text for passage in read_passages(rules.excluded)]
    remaining_passages, dropped = clean_passages(passages, excluded, rules.cleaning)
    counts = {}
    train_passages, held_out_passages = split_by_section(remaining_passages, rules.held_out, config.seed)
    for name, part in (("texts_train", train_passages), ("texts_held_out", held_out_passages)):
        counts[name] = _write(folder / f"{name}.jsonl", text_groups(part, rules.chunk_words))
    for name in SETS:
        file = getattr(config, name)
        groups = read_preferences(file) if name == "preferences" else read_groups(file).groups
        with locate_errors(file):
            training_and_validation, test = split_by_prompt(groups, held_out=config.held_out, seed=config.seed)
            share = config.held_out / (1 - config.held_out)
            train, validation = split_by_prompt(training_and_validation, held_out=share, seed=config.seed)
        for part_name, split in zip(PARTS, (train, validation, test), strict=True):
            counts[f"{name}_{part_name}"] = _write(folder / f"{name}_{part_name}.jsonl", split)
    return {"passages": len(passages), "left_out": dropped, "groups": counts}


def read_preferences(file: str) -> list[PreferenceGroup]:
    """The groups of a file, all of which must prefer an answer.

    Raises:
        DataError: a group prefers no answer, or the file cannot be read.
    """
    groups = read_groups(file).groups
    if not all(group.pairs for group in groups):
        raise DataError("a group prefers no answer", where=file, fix="give chosen and rejected")
    return list(groups)


def _write(file: Path, groups: Sequence[PreferenceGroup]) -> int:
    write_anew(groups, file)
    return len(groups)
