"""How a recipe's stages read data: settings of every run and evaluation, and a check of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from pydantic import Field

from penchant.api import (
    NO_LIMIT,
    BertScore,
    JudgeConfig,
    PreferenceGroup,
    Reading,
    Sampling,
    ScoredGroup,
    Section,
    Text,
    World,
    adapter_base,
    answer,
    context_length,
    file_fingerprint,
    fit_prompts,
    load_config,
    load_tokenizer,
    locate_errors,
    read_groups,
    score,
    tokenize_groups,
    weights_fingerprint,
)
from penchant.api import ReadingConfig as DataReadingConfig
from penchant.recipes.small_llama import Sizes, build_small_llama

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncoderConfig(Section):
    """An encoder whose hidden states measure how similar an answer is to its reference."""

    model: str = Field(description="folder or hub id of an encoder, or of any language model")
    layers: int | None = Field(None, ge=1, description="layer whose hidden states are compared; null: the last")
    idf: bool = Field(False, description="weight tokens by their inverse document frequency in the references")

    def open(self) -> BertScore:
        """The loaded `BertScore`, which raises the same errors as its constructor."""
        return BertScore(self.model, self.layers, idf=self.idf)


def judge_settings(judge: JudgeConfig | None) -> dict[str, Any] | None:
    """A judge's settings for a stage, with a fingerprint of its template in place of the file's name."""
    if judge is None:
        return None
    template = None if judge.prompt is None else file_fingerprint(judge.prompt)
    # Leaving empty fields out keeps stages valid that were done before the key existed.
    unset = set() if judge.request else {"request"}
    return judge.model_dump(mode="json", exclude=unset) | {"prompt": template}


def encoder_settings(encoder: EncoderConfig | None) -> dict[str, Any] | None:
    """An encoder's settings for a stage, with a fingerprint of its weights."""
    if encoder is None:
        return None
    unset = set() if encoder.idf else {"idf"}
    return encoder.model_dump(exclude=unset) | {"weights": weights_fingerprint(encoder.model)}


class ReadingConfig(DataReadingConfig):
    """How every stage reads its data, as in a run's `data`.

    Evaluation never drops a row, since all models must answer the same questions: a policy that drops or truncates
    long rows in training truncates them in evaluation.
    """

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that differ from the defaults, for a stage's record; empty where none does.

        Leaving the defaults out keeps stages valid that were done before a setting existed.
        """
        non_defaults = self.model_dump(mode="json", exclude_defaults=True)
        return {"data": non_defaults} if non_defaults else {}

    def evaluation_reading(self, token_budget: int = 8192) -> Reading:
        """The reading settings of evaluation."""
        return Reading(
            self.max_length,
            "error" if self.truncation == "error" else "keep_end_of_prompt",
            chat_template=self.chat_template,
            token_budget=token_budget,
            rendering=replace(self.rendering("last"), refused="error"),
        )


DEFAULT_READING = ReadingConfig()
"""The default settings."""


def compute_log_probs(
    model: str, groups: Sequence[PreferenceGroup], token_budget: int, data: ReadingConfig = DEFAULT_READING
) -> list[ScoredGroup]:
    """Summed log-probs of every candidate of every group, in nats.

    Args:
        model: folder or hub id.
        token_budget: maximum tokens in a micro-batch.
    """
    return score(model, groups, World.single(), reading=data.evaluation_reading(token_budget))


def generate_answers(
    model: str, prompts: Sequence[Text], sampling: Sampling, data: ReadingConfig = DEFAULT_READING
) -> list[tuple[str, ...]]:
    """A model's sampled responses to every prompt, one tuple per prompt.

    A prompt that leaves no room for the response loses its beginning, unless `data.truncation` is "error".
    """
    reading = data.evaluation_reading()
    ids = None
    if reading.truncation != "error":
        ids = fit_prompts(model, prompts, sampling.max_new_tokens, reading).ids
    return list(answer(model, prompts, sampling, reading, ids=ids).responses)


def pair_accuracies(scored: ScoredGroup) -> list[float]:
    """Accuracy of each pair of a group: 1 where the better candidate has the higher mean log-prob, 0.5 in a tie, or 0.

    The mean is per token, since the summed log-prob of a longer answer is lower whatever the model prefers.
    """
    means = [value / n for value, n in zip(scored.log_probs, scored.tokens, strict=True)]
    return [(means[i] > means[j]) + 0.5 * (means[i] == means[j]) for i, j in scored.group.pairs]


@dataclass(frozen=True)
class ModelTokenizer:
    """A model's tokenizer and context length, which decide the rows it can read.

    Attributes:
        name: the model's name in error messages.
        context: maximum tokens of a row; None where the model has no limit.
    """

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int | None

    @classmethod
    def load(cls, model: str, data: ReadingConfig) -> ModelTokenizer:
        """The tokenizer and context length of a model folder or hub id."""
        context = context_length(load_config(adapter_base(model) or model, weights=False))
        return cls(model, load_tokenizer(model, chat_template=data.chat_template), context)

    @classmethod
    def from_scratch(
        cls, name: str, texts: Sequence[str], sizes: Sizes, seed: int, data: ReadingConfig
    ) -> ModelTokenizer:
        """The tokenizer, trained on the texts, and context length of a small model with random weights."""
        with TemporaryDirectory() as folder:
            build_small_llama(Path(folder) / "start", texts, sizes, seed)
            tokenizer = load_tokenizer(str(Path(folder) / "start"), chat_template=data.chat_template)
        return cls(name, tokenizer, sizes.context)

    def max_tokens(self, data: ReadingConfig) -> int:
        """The maximum number of tokens of a prompt with its response."""
        return data.max_length or self.context or NO_LIMIT


def read_stage_groups(stage: str, files: Iterable[Path]) -> dict[str, Sequence[PreferenceGroup]]:
    """The groups in a stage's files, by the name that an error message gives the file."""
    return {f"{file.name} of stage {stage}": read_groups(file).groups for file in files}


def check_lengths(
    models: Sequence[ModelTokenizer], groups: Mapping[str, Sequence[PreferenceGroup]], data: ReadingConfig
) -> None:
    """Check, in the stage that writes the data, that all later stages can read it.

    Args:
        models: tokenizers of the models that read all of the groups.
        groups: groups by the name of their source in error messages.

    Raises:
        DataError: a row is too long, or cannot be read; the error names the source and the model.
    """
    for source, rows in groups.items():
        for model in models:
            with locate_errors(f"{source}, as {model.name} reads it"):
                tokenize_groups(
                    rows,
                    model.tokenizer,
                    max_length=model.max_tokens(data),
                    rendering=data.rendering("last"),
                    truncation=data.truncation,
                    empty=data.empty,
                    identical=data.identical,
                )
