"""A base from nothing, as a recipe's stage: text to train on, a small Llama, and an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from penchant.config import TrainingConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.recipes.small_llama import SizesConfig, build_small_llama
from penchant.recipes.stages import Found
from penchant.recipes.texts import as_groups, read_passages
from penchant.recipes.tuning import TunedConfig, tune


def new_base(
    place: Path,
    texts: str,
    chunk_words: int,
    sizes: SizesConfig,
    training: TrainingConfig,
    also: Sequence[Path],
    seed: int,
    keys: Mapping[str, str],
) -> Found:
    """Train into ``place/run``; what was interrupted goes on.

    Args:
        texts: file of passages, longer ones cut into so many words.
        also: files of groups that the tokenizer, not the base, learns from too.
        keys: see `tuning.stage_keys`.
    """
    groups, corpus = base_texts(texts, chunk_words, also)
    write_anew(groups, place / "train.jsonl")
    if not (place / "start" / "config.json").exists():
        build_small_llama(place / "start", corpus, sizes.sizes, seed)
    tuned = TunedConfig(training=training)
    tune(place, str(place / "start"), place / "train.jsonl", None, {"name": "sft"}, tuned, keys=keys)
    return {"texts": len(groups)}


def base_texts(texts: str, chunk_words: int, also: Sequence[Path]) -> tuple[list[PreferenceGroup], list[str]]:
    """What a base from nothing is trained on, and what its tokenizer is."""
    groups = as_groups(read_passages(texts), chunk_words)
    passages = [as_text(group.candidates[0]) for group in groups]
    parts = (part for file in also for group in read_groups(file).groups for part in _parts(group))
    return groups, [*passages, *parts]


def _parts(group: PreferenceGroup) -> list[str]:
    return [as_text(part) for part in (group.prompt, *group.candidates)]
