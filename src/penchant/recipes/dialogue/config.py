"""The dialogue recipe's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.config import TrainingConfig
from penchant.config_reward import JudgeConfig
from penchant.config_section import Section
from penchant.recipes.comparing import Seeds
from penchant.recipes.dialogue.construction import Filters
from penchant.recipes.dialogue.rewriting import PRESCRIPTIVE, SUPPORTIVE, EndpointRewriter, Rewriter, RuleRewriter
from penchant.recipes.encoders import EncoderConfig
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.reviewing import ReviewConfig
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

FILTERS, RULES = Filters(), RuleRewriter()


class SourceConfig(Section):
    """One file of answers."""

    file: str = Field(description="JSON lines of question and answer, or of messages; topic and source beside them")
    pairs: Literal["ratings", "styles"] = Field(description="by votes or scores, or an answer rewritten in two styles")
    rating: str = Field("rating", description="the field with an answer's votes or score")
    turns: int = Field(3, ge=1, description="of a dialogue, how many turns before an answer are its question")


class FiltersConfig(Section):
    """Which pairs are left out."""

    least_margin: float = Field(FILTERS.least_margin, ge=0, description="between two ratings")
    per_question: int | None = Field(FILTERS.per_question, ge=1, description="pairs of one question at most")
    most_words: int | None = Field(FILTERS.most_words, ge=1, description="in an answer")
    crisis_needs_referral: bool = Field(FILTERS.crisis_needs_referral, description="a better answer names help there")
    most_unsupported: int = Field(FILTERS.most_unsupported, ge=0, description="numbers and names its source has not")

    @property
    def filters(self) -> Filters:
        return Filters(**self.model_dump())


class RewritingConfig(Section):
    """How an answer is put in two styles: by a language model, or by rules that stand in for one."""

    endpoint: JudgeConfig | None = Field(None, description="a language model; null: the rules")
    supportive: str = Field(SUPPORTIVE, description="template of {question} and {answer}")
    prescriptive: str = Field(PRESCRIPTIVE, description="template of {question} and {answer}")
    sentences: int = Field(RULES.sentences, ge=1, description="of an answer that the rules keep")
    most_words: int = Field(RULES.most_words, ge=1, description="of what the rules keep")

    @field_validator("supportive", "prescriptive")
    @classmethod
    def _asks(cls, value: str) -> str:
        if "{answer}" not in value:
            raise ValueError("expected a template with {answer} in it")
        return value

    @property
    def rewriter(self) -> Rewriter:
        if self.endpoint is None:
            return RuleRewriter(self.sentences, self.most_words)
        return EndpointRewriter(self.endpoint, self.supportive, self.prescriptive)


class ModelConfig(Section):
    """A base model: a folder or hub id, or one from nothing."""

    model: str | None = Field(None, description="folder or hub id")
    new: SizesConfig | None = Field(None, description="sizes of a Llama from nothing")

    @model_validator(mode="after")
    def _one(self) -> ModelConfig:
        if (self.model is None) == (self.new is None):
            raise ValueError("expected either model or new")
        return self


class NewModelsConfig(Section):
    """How models from nothing are made."""

    texts: str | None = Field(None, description="general text: JSON lines of text, or plain text with empty lines")
    chunk_words: int = Field(200, ge=8, description="longer passages are cut")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)


class MethodConfig(TuningConfig):
    """One way to learn from preferences, from the SFT model."""

    objective: dict[str, Any] = Field(description="as in a run")


class MeasuresConfig(Section):
    """What answers are measured by, beside what is counted from their words."""

    bert_score: EncoderConfig | None = Field(None, description="token by token, against the better answer")
    sentences: str | None = Field(None, description="a sentence-transformers model: cosine with the better answer")
    entailment: str | None = Field(None, description="an NLI classifier: whether the answer follows from its source")
    empathic: str | None = Field(
        None, description="completions with a label: texts a classifier of empathy learns from"
    )
    judge: JudgeConfig | None = Field(None, description="asked whether answers beat the SFT model's")


class DialogueConfig(Section):
    """Preferences from dialogues, several models tuned on them, and what that did to their answers."""

    sources: dict[str, SourceConfig] = Field(description="by name")
    models: dict[str, ModelConfig] = Field(description="base models, by name")
    output: str = Field(description="the recipe's folder")
    template: str | None = Field(
        "Question: {question}\nAnswer:", description="a question's prompt; null: a user's message, by the chat template"
    )
    filters: FiltersConfig = FiltersConfig()
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    rewriting: RewritingConfig = RewritingConfig()
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of topics for the test, and for validation")
    review: ReviewConfig = ReviewConfig()
    new_models: NewModelsConfig = NewModelsConfig()
    sft: TuningConfig = TuningConfig()
    methods: dict[str, MethodConfig] = Field(
        {"dpo": MethodConfig(objective={"name": "dpo", "beta": 0.1})}, description="by name, each from the SFT model"
    )
    seeds: Seeds = Field([0, 1, 2], description="every model is tuned with each")
    measures: MeasuresConfig = MeasuresConfig()
    questions: int = Field(100, ge=2, description="test questions of each source that are answered, at most")
    answer_tokens: int = Field(96, ge=1, description="of the longest answer")
    sheet: int = Field(50, ge=1, description="questions in the sheets for people")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of what is only read")
    seed: int = Field(0, ge=0, description="of the parts and of models from nothing")

    @field_validator("template")
    @classmethod
    def _asks(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value:
            raise ValueError("expected a template with {question} in it")
        return value

    @field_validator("sources", "models", "methods")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("expected at least one")
        for name in value:
            if name in RESERVED or not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"'{name}' cannot be a name: letters, digits, . and _, none of {', '.join(RESERVED)}")
        return value

    @model_validator(mode="after")
    def _has_texts(self) -> DialogueConfig:
        if self.new_models.texts is None and any(each.new is not None for each in self.models.values()):
            raise ValueError("new_models.texts: a model from nothing needs general text")
        return self


RESERVED = ("base", "sft", "all", "crisis", "unsafe")
