"""The first stage: text to train on, and every set of groups in training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.data.splitting import split_by_prompt
from penchant.data.writing import write_anew
from penchant.errors import DataError, located
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.stages import StageResult
from penchant.recipes.texts import clean_passages, read_passages, split_by_section, text_groups

SETS = ("instructions", "preferences", "tasks")
PARTS = ("train", "validation", "test")


def prepare(config: DomainExpertConfig, folder: Path) -> StageResult:
    """Write TEXTS in two parts and each set of groups in three; returns what was left out, counted."""
    rules = config.texts
    passages = read_passages(rules.file, text=rules.text, section=rules.section)
    excluded = [] if rules.excluded is None else [each.text for each in read_passages(rules.excluded)]
    kept, dropped = clean_passages(passages, excluded, rules.cleaning)
    counts = {}
    for name, those in zip(
        ("texts_train", "texts_held_out"), split_by_section(kept, rules.held_out, config.seed), strict=True
    ):
        counts[name] = _write(folder / f"{name}.jsonl", text_groups(those, rules.chunk_words))
    for name in SETS:
        file = getattr(config, name)
        groups = read_preferences(file) if name == "preferences" else read_groups(file).groups
        with located(file):
            rest, test = split_by_prompt(groups, held_out=config.held_out, seed=config.seed)
            share = config.held_out / (1 - config.held_out)
            train, validation = split_by_prompt(rest, held_out=share, seed=config.seed)
        for part, split in zip(PARTS, (train, validation, test), strict=True):
            counts[f"{name}_{part}"] = _write(folder / f"{name}_{part}.jsonl", split)
    return {"passages": len(passages), "left_out": dropped, "groups": counts}


def read_preferences(file: str) -> list[PreferenceGroup]:
    """Groups that all say which answer is better.

    Raises:
        DataError: one does not, or the file cannot be read.
    """
    groups = read_groups(file).groups
    if not all(group.pairs for group in groups):
        raise DataError("a group says of no answer that it is better", where=file, fix="give chosen and rejected")
    return list(groups)


def _write(file: Path, groups: Sequence[PreferenceGroup]) -> int:
    write_anew(groups, file)
    return len(groups)
