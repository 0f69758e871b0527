"""How a recipe's stages read data: settings handed to every run and measurement, and a check of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from penchant import config_reading
from penchant.data.groups import PreferenceGroup, Text
from penchant.data.reading import read_groups
from penchant.data.tokenization import tokenize_groups
from penchant.engine.distribution import World, local_device
from penchant.engine.frozen import NO_LIMIT
from penchant.engine.loading import adapter_base, context_length, load_config, load_tokenizer
from penchant.errors import locate_errors
from penchant.evaluation.answering import answer, fit_prompts
from penchant.evaluation.generation import Sampling
from penchant.evaluation.held_out import Reading, ScoredGroup, score
from penchant.recipes.small_llama import Sizes, build_small_llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ReadingConfig(config_reading.ReadingConfig):
    """How every stage reads its data, as in a run's `data`.

    Rows that are only measured are never dropped, since all models answer the same questions: a policy that drops or
    cuts long rows cuts them there.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a stage's result; nothing where all is as by default, so that stages done before stay done."""
        changed = self.model_dump(mode="json", exclude_defaults=True)
        return {"data": changed} if changed else {}

    def measuring(self, token_budget: int = 8192) -> Reading:
        """Settings of the models that are measured."""
        return Reading(
            self.max_length,
            "error" if self.truncation == "error" else "keep_end_of_prompt",
            chat_template=self.chat_template,
            token_budget=token_budget,
            rendering=replace(self.rendering("last"), refused="error"),
        )


READING = ReadingConfig()
"""The defaults."""


def read_log_probs(
    model: str, groups: Sequence[PreferenceGroup], token_budget: int, data: ReadingConfig = READING
) -> list[ScoredGroup]:
    """Log-probs of every candidate of every group.

    Args:
        model: folder or hub id.
        token_budget: tokens in a micro-batch.
    """
    return score(model, groups, World(0, 1, local_device()), reading=data.measuring(token_budget))


def read_answers(
    model: str, prompts: Sequence[Text], sampling: Sampling, data: ReadingConfig = READING
) -> list[tuple[str, ...]]:
    """A model's responses to each prompt; the beginning of one without room for an answer is cut where that is set."""
    reading = data.measuring()
    ids = None
    if reading.truncation != "error":
        ids = fit_prompts(model, prompts, sampling.max_new_tokens, reading, lambda line: None).ids
    return list(answer(model, prompts, sampling, reading, ids=ids).responses)


def pairs_right(scored: ScoredGroup) -> list[float]:
    """For each pair, 1 where the better candidate has the higher log-prob per token, a half for a tie, else 0.

    Per token: a model without preferences finds a longer answer less likely, whatever it says.
    """
    means = [value / n for value, n in zip(scored.log_probs, scored.tokens, strict=True)]
    return [(means[i] > means[j]) + 0.5 * (means[i] == means[j]) for i, j in scored.group.pairs]


@dataclass(frozen=True)
class Reader:
    """What decides which rows a model can read.

    Attributes:
        name: of the model, in errors.
        context: tokens of the longest row; None where the model has no limit.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int | None

    @classmethod
    def load(cls, model: str, data: ReadingConfig) -> Reader:
        """The reader of a folder or hub id."""
        context = context_length(load_config(adapter_base(model) or model, weights=False))
        return cls(model, load_tokenizer(model, chat_template=data.chat_template), context)

    @classmethod
    def from_nothing(cls, name: str, texts: Sequence[str], sizes: Sizes, seed: int, data: ReadingConfig) -> Reader:
        """The reader of a small model from nothing, whose tokenizer is trained on these texts."""
        with TemporaryDirectory() as folder:
            build_small_llama(Path(folder) / "start", texts, sizes, seed)
            tokenizer = load_tokenizer(str(Path(folder) / "start"), chat_template=data.chat_template)
        return cls(name, tokenizer, sizes.context)

    def limit(self, data: ReadingConfig) -> int:
        """Tokens of a prompt with its response, at most."""
        return data.max_length or self.context or NO_LIMIT


def groups_of(stage: str, files: Iterable[Path]) -> dict[str, Sequence[PreferenceGroup]]:
    """The groups of a stage's files, by what an error calls the file."""
    return {f"{file.name} of stage {stage}": read_groups(file).groups for file in files}


def check_lengths(
    readers: Sequence[Reader], groups: Mapping[str, Sequence[PreferenceGroup]], data: ReadingConfig
) -> None:
    """Refuse in the first stage that has the data what a later stage would refuse when it comes to it.

    Args:
        readers: of the models that read all of the groups.
        groups: by what an error calls their source.

    Raises:
        DataError: a row is too long, or cannot be read; it names the source and the model.
    """
    for source, rows in groups.items():
        for reader in readers:
            with locate_errors(f"{source}, as {reader.name} reads it"):
                tokenize_groups(
                    rows,
                    reader.tokenizer,
                    max_length=reader.limit(data),
                    rendering=data.rendering("last"),
                    truncation=data.truncation,
                    empty=data.empty,
                    identical=data.identical,
                )
