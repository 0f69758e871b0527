"""A base from nothing, as a recipe's stage: text to train on, a small Llama, and an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.config import TrainingConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.recipes.reading import Reader, ReadingConfig
from penchant.recipes.small_llama import SizesConfig, build_small_llama
from penchant.recipes.stages import Found
from penchant.recipes.texts import as_groups, read_passages
from penchant.recipes.tuning import TunedConfig, tune


@dataclass(frozen=True)
class NewBase:
    """How a base is made.

    Attributes:
        texts: file of passages, longer ones cut into `chunk_words` words.
        also: files of groups that the tokenizer, not the base, learns from too.
        keys: see `tuning.stage_keys`.
    """

    texts: str
    chunk_words: int
    sizes: SizesConfig
    training: TrainingConfig
    also: Sequence[Path]
    seed: int
    keys: Mapping[str, str]

    def train(self, folder: Path) -> Found:
        """Train into ``folder/run``; an interrupted run resumes."""
        groups = self._groups()
        write_anew(groups, folder / "train.jsonl")
        start, tuned = folder / "start", TunedConfig(training=self.training)
        if not (start / "config.json").exists():
            build_small_llama(start, self._corpus(groups), self.sizes.sizes, self.seed)
        tune(folder, str(start), folder / "train.jsonl", None, {"name": "sft"}, tuned, keys=self.keys)
        return {"texts": len(groups)}

    def reader(self, name: str, data: ReadingConfig) -> Reader:
        """The reader of the base before it is made.

        Args:
            name: of the base, in errors.
        """
        return Reader.from_nothing(name, self._corpus(self._groups()), self.sizes.sizes, self.seed, data)

    def _groups(self) -> list[PreferenceGroup]:
        return as_groups(read_passages(self.texts), self.chunk_words)

    def _corpus(self, groups: Sequence[PreferenceGroup]) -> list[str]:
        """What the tokenizer is trained on."""
        passages = [as_text(group.candidates[0]) for group in groups]
        return [
            *passages,
            *(part for file in self.also for group in read_groups(file).groups for part in _parts(group)),
        ]


def _parts(group: PreferenceGroup) -> list[str]:
    return [as_text(part) for part in (group.prompt, *group.candidates)]
