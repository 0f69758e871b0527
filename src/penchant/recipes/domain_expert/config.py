"""The domain expert's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.config import TrainingConfig
from penchant.config_reward import JudgeConfig
from penchant.config_section import Section
from penchant.recipes.encoders import EncoderConfig
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.texts import Cleaning
from penchant.recipes.tuning import TuningConfig

CLEANING = Cleaning()


class TextsConfig(Section):
    """The text of the field."""

    file: str = Field(description="JSON lines, or plain text with empty lines between passages")
    text: str = Field("text", description="the field that holds a passage")
    section: str | None = Field(None, description="the field that names what a passage is part of; null: itself")
    excluded: str | None = Field(None, description="file of texts never to be trained on, as what tests ask about")
    min_words: int = Field(CLEANING.min_words, ge=1)
    similarity: float = Field(CLEANING.similarity, ge=0.1, le=1, description="from which two passages are one")
    contained: float = Field(CLEANING.contained, gt=0, le=1, description="share of an excluded text")
    chunk_words: int = Field(CLEANING.chunk_words, ge=8, description="longer passages are cut")
    held_out: float = Field(0.1, gt=0, lt=1, description="share of the sections perplexity is measured on")

    @property
    def cleaning(self) -> Cleaning:
        return Cleaning(self.min_words, self.similarity, self.contained, self.chunk_words)


class NewFamilyConfig(SizesConfig):
    """A base and its instruct sibling from nothing: the base on text, the sibling on the instructions."""

    texts: str | None = Field(None, description="general text the base is trained on")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)
    instruct: TrainingConfig = TrainingConfig(learning_rate=1e-3, schedule="cosine")


class ResidualConfig(Section):
    """How much of the instruction residual is added."""

    scales: list[float] = Field([0.0, 0.25, 0.5, 0.75, 1.0, 1.25], description="the best on validation is taken")

    @field_validator("scales")
    @classmethod
    def _some(cls, value: list[float]) -> list[float]:
        if not value or len(set(value)) < len(value):
            raise ValueError("expected one scale or more, each once")
        return sorted(value)


class ConversationConfig(TuningConfig):
    """The expert in conversation."""

    objective: dict[str, Any] = Field({"name": "dpo", "beta": 0.1}, description="as in a run")


class RouterConfig(Section):
    """How requests are sent to an expert."""

    asks: Literal["structured", "conversation"] = Field("structured", description="the expert that sorts requests")
    shots: int = Field(3, ge=1, description="examples of each kind in the question")
    taught: int = Field(
        0, ge=0, description="requests of each kind whose sorting the structured expert learns; 0: examples alone"
    )
    names: dict[str, str] = Field(
        {"conversation": "question", "structured": "task"}, description="what the question calls each expert's requests"
    )
    normalize: Literal["sum", "mean"] = Field(
        "sum",
        description="compare the names' summed log-probs, or those per token: where one name has more tokens; the "
        "confidence is of what is compared",
    )
    threshold: float = Field(0.6, ge=0, le=1, description="below this confidence the fallback answers")
    fallback: Literal["structured", "conversation"] = "conversation"

    @field_validator("names")
    @classmethod
    def _both(cls, value: dict[str, str]) -> dict[str, str]:
        if set(value) != {"conversation", "structured"} or len(set(value.values())) < 2:
            raise ValueError("expected two different names, for conversation and structured")
        return value


class DomainExpertConfig(Section):
    """Adapt to a field, follow instructions again, two experts, and a router before them."""

    texts: TextsConfig
    instructions: str = Field(description="groups of prompt and completion: what an instruct model can do")
    preferences: str = Field(
        description="groups of prompt, chosen and rejected answers, for the expert in conversation"
    )
    tasks: str = Field(description="groups of prompt and completion, for the expert in structured tasks")
    output: str = Field(description="the recipe's folder")
    base: str | None = Field(None, description="folder or hub id; null, with instruct: from nothing")
    instruct: str | None = Field(None, description="the base's instruction-tuned sibling")
    new_models: NewFamilyConfig = NewFamilyConfig()
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of prompts for the test, and for validation")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    adaptation: TuningConfig = TuningConfig()
    residual: ResidualConfig = ResidualConfig()
    conversation: ConversationConfig = ConversationConfig()
    structured: TuningConfig = TuningConfig()
    router: RouterConfig = RouterConfig()
    bert_score: EncoderConfig | None = Field(None, description="answers are also compared by BERTScore")
    judge: JudgeConfig | None = Field(None, description="asked whether answers beat the instruct model's")
    answers: int = Field(200, ge=1, description="answers of each kind that are measured, at most")
    answer_tokens: int = Field(64, ge=1, description="of the longest answer")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of what is only read")
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _siblings(self) -> DomainExpertConfig:
        if (self.base is None) != (self.instruct is None):
            raise ValueError("base and instruct come together: name both, or neither to train both from nothing")
        if self.base is None and self.new_models.texts is None:
            raise ValueError("new_models.texts: a base from nothing needs general text, or name base and instruct")
        return self
