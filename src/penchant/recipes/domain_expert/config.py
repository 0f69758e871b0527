"""The domain expert's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.api import JudgeConfig, Section, TrainingConfig
from penchant.recipes.reading import DEFAULT_READING, EncoderConfig, ReadingConfig
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.texts import Cleaning
from penchant.recipes.tuning import TuningConfig

CLEANING = Cleaning()


class TextsConfig(Section):
    """The text of the domain."""

    file: str = Field(description="file of passages: JSON lines, or plain text with empty lines between passages")
    text: str = Field("text", description="the key of a passage's text")
    section: str | None = Field(None, description="the key of a passage's section; null: every passage is a section")
    excluded: str | None = Field(None, description="file of texts to leave out of training, such as test answers")
    min_words: int = Field(CLEANING.min_words, ge=1, description="words of a passage, at least")
    similarity: float = Field(
        CLEANING.similarity, ge=0.1, le=1, description="similarity from which two passages count as repeats"
    )
    contained: float = Field(
        CLEANING.contained, gt=0, le=1, description="share of an excluded text from which a passage contains it"
    )
    chunk_words: int = Field(CLEANING.chunk_words, ge=8, description="words of a passage, at most; longer ones are cut")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of sections to measure perplexity on")

    @property
    def cleaning(self) -> Cleaning:
        """The rules of cleaning the text."""
        return Cleaning(self.min_words, self.similarity, self.contained, self.chunk_words)


class NewFamilyConfig(SizesConfig):
    """A base trained from scratch on text, and an instruct sibling trained from any base on the instructions."""

    texts: str | None = Field(None, description="file of general text to train the base on")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)
    instruct: TrainingConfig = TrainingConfig(learning_rate=1e-3, schedule="cosine")


class ResidualConfig(Section):
    """The scales of the instruction residual."""

    scales: list[float] = Field(
        [0.0, 0.25, 0.5, 0.75, 1.0, 1.25], description="scales to try; the best one on validation is used"
    )

    @field_validator("scales")
    @classmethod
    def _check_scales(cls, value: list[float]) -> list[float]:
        if not value or len(set(value)) < len(value):
            raise ValueError("expected one scale or more, each once")
        return sorted(value)


class ConversationConfig(TuningConfig):
    """The expert in conversation."""

    objective: dict[str, Any] = Field(
        {"name": "dpo", "beta": 0.1}, description="the objective, as in a run's configuration"
    )


class RouterConfig(Section):
    """The router, which sends every request to an expert."""

    asks: Literal["structured", "conversation"] = Field("structured", description="the expert that classifies requests")
    shots: int = Field(3, ge=1, description="number of examples of each kind in the router's prompt")
    taught: int = Field(
        0,
        ge=0,
        description="number of requests of each kind that the structured expert is trained to classify; 0: the router "
        "relies on its examples",
    )
    names: dict[str, str] = Field(
        {"conversation": "question", "structured": "task"}, description="the router's label of each expert's requests"
    )
    normalize: Literal["sum", "mean"] = Field(
        "sum",
        description="compare the labels' summed log-probs, or the means per token if one label has more tokens; the "
        "confidence is computed from the same values",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="confidence below which the fallback expert answers; null: the one by which most validation "
        "requests reach the right expert",
    )
    fallback: Literal["structured", "conversation"] = "conversation"

    @field_validator("names")
    @classmethod
    def _check_names(cls, value: dict[str, str]) -> dict[str, str]:
        if set(value) != {"conversation", "structured"} or len(set(value.values())) < 2:
            raise ValueError("expected two different names, for conversation and structured")
        return value


class DomainExpertConfig(Section):
    """Adapt a base to a domain, restore its instruction following, train two experts and a router."""

    texts: TextsConfig
    instructions: str = Field(description="file of groups of prompt and completion that an instruct model can answer")
    preferences: str = Field(
        description="file of groups of prompt, chosen and rejected answers for the expert in conversation"
    )
    tasks: str = Field(description="file of groups of prompt and completion for the expert in structured tasks")
    summaries: str | None = Field(
        None,
        description="file of groups of prompt and completion, texts to summarise, for the expert in structured tasks",
    )
    output: str = Field(description="the recipe's folder")
    base: str | None = Field(None, description="the base: folder or hub id; null: trained from scratch")
    instruct: str | None = Field(
        None,
        description="the base's instruction-tuned sibling: folder or hub id; null: trained from the base on the "
        "instructions, by new_models.instruct",
    )
    new_models: NewFamilyConfig = NewFamilyConfig()
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of prompts for the test, and for validation")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    adaptation: TuningConfig = TuningConfig()
    residual: ResidualConfig = ResidualConfig()
    conversation: ConversationConfig = ConversationConfig()
    structured: TuningConfig = TuningConfig()
    router: RouterConfig = RouterConfig()
    bert_score: EncoderConfig | None = Field(None, description="encoder of BERTScore; null: it is not computed")
    judge: JudgeConfig | None = Field(None, description="judge that compares answers with the instruct model's")
    rating: JudgeConfig | None = Field(
        None, description="judge that rates answers from 1 to 5 by a rubric, beside the reference answer"
    )
    answers: int = Field(200, ge=1, description="number of measured answers of each kind, at most")
    answer_tokens: int = Field(64, ge=1, description="tokens of an answer, at most")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of scoring")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check_models(self) -> DomainExpertConfig:
        if self.base is None and self.instruct is not None:
            raise ValueError("instruct is the sibling of a base, which is not named: name base too, or leave both out")
        if self.base is None and self.new_models.texts is None:
            raise ValueError("new_models.texts: a base trained from scratch needs general text, or name base")
        return self

    @property
    def sets_by_expert(self) -> dict[str, tuple[str, ...]]:
        """Names of the sets of groups that hold an expert's requests, by expert."""
        return {"conversation": ("preferences",), "structured": ("tasks", *(["summaries"] if self.summaries else []))}

    @property
    def sets(self) -> tuple[str, ...]:
        """Names of all sets of groups."""
        return ("instructions", *(name for sets in self.sets_by_expert.values() for name in sets))
