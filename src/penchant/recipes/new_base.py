"""A recipe's stage that trains a base model from scratch: training text, a small Llama, and an ordinary run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from penchant.config import TrainingConfig
from penchant.data.groups import PreferenceGroup, as_text
from penchant.data.reading import read_groups
from penchant.data.writing import write_anew
from penchant.recipes.reading import ModelTokenizer, ReadingConfig
from penchant.recipes.small_llama import SizesConfig, build_small_llama
from penchant.recipes.stages import StageResult
from penchant.recipes.texts import read_passages, text_groups
from penchant.recipes.tuning import TuningConfig, tune


@dataclass(frozen=True)
class NewBase:
    """Settings of a base model that is trained from scratch.

    Attributes:
        texts: file of passages; longer ones are split into chunks of at most `chunk_words` words.
        tokenizer_files: files of groups that the tokenizer is trained on too; the base model is not.
        keys: see `tuning.stage_keys`.
    """

    texts: str
    chunk_words: int
    sizes: SizesConfig
    training: TrainingConfig
    tokenizer_files: Sequence[Path]
    seed: int
    keys: Mapping[str, str]

    def train(self, folder: Path) -> StageResult:
        """Train the base model into ``folder/run``; an interrupted run resumes.

        Returns:
            The number of training texts.
        """
        groups = self._groups()
        write_anew(groups, folder / "train.jsonl")
        start, tuned = folder / "start", TuningConfig(training=self.training)
        if not (start / "config.json").exists():
            build_small_llama(start, self._corpus(groups), self.sizes.sizes, self.seed)
        tune(folder, str(start), folder / "train.jsonl", None, {"name": "sft"}, tuned, keys=self.keys)
        return {"texts": len(groups)}

    def tokenizer(self, name: str, data: ReadingConfig) -> ModelTokenizer:
        """The base model's tokenizer and context length, before the model is trained.

        Args:
            name: the base model's name in error messages.
        """
        return ModelTokenizer.from_scratch(name, self._corpus(self._groups()), self.sizes.sizes, self.seed, data)

    def _groups(self) -> list[PreferenceGroup]:
        return text_groups(read_passages(self.texts), self.chunk_words)

    def _corpus(self, groups: Sequence[PreferenceGroup]) -> list[str]:
        """The texts that the tokenizer is trained on."""
        passages = [as_text(group.candidates[0]) for group in groups]
        return [
            *passages,
            *(text for file in self.tokenizer_files for group in read_groups(file).groups for text in _texts(group)),
        ]


def _texts(group: PreferenceGroup) -> list[str]:
    return [as_text(part) for part in (group.prompt, *group.candidates)]
