"""The dialogue recipe's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.api import JudgeConfig, Section, TrainingConfig
from penchant.recipes.dialogue.construction import Filters
from penchant.recipes.dialogue.rewriting import PRESCRIPTIVE, SUPPORTIVE, EndpointRewriter, Rewriter, RuleRewriter
from penchant.recipes.reading import DEFAULT_READING, EncoderConfig, ReadingConfig
from penchant.recipes.results import ReviewConfig, Seeds
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

FILTERS, RULES = Filters(), RuleRewriter()


class SourceConfig(Section):
    """One file of answers to questions."""

    file: str = Field(description="JSON lines of question and answer, or of messages, optionally with topic and source")
    pairs: Literal["ratings", "styles"] = Field(
        description="ratings: answers compared by votes or scores; styles: each answer rewritten in two styles"
    )
    rating: str = Field("rating", description="name of the field with an answer's votes or score")
    turns: int = Field(3, ge=1, description="number of turns before an answer that form its question, in a dialogue")


class FiltersConfig(Section):
    """Rules that drop pairs."""

    least_margin: float = Field(
        FILTERS.least_margin, ge=0, description="minimum difference between the ratings of the two answers"
    )
    per_question: int | None = Field(FILTERS.per_question, ge=1, description="maximum number of pairs per question")
    most_words: int | None = Field(FILTERS.most_words, ge=1, description="maximum number of words in an answer")
    crisis_needs_referral: bool = Field(
        FILTERS.crisis_needs_referral, description="the better answer to a question about a crisis must name help"
    )
    most_unsupported: int = Field(
        FILTERS.most_unsupported,
        ge=0,
        description="maximum number of numbers and names in the better answer that its source does not contain",
    )

    @property
    def filters(self) -> Filters:
        return Filters(**self.model_dump())


class RewritingConfig(Section):
    """Rewriting of an answer in two styles, by a language model or by simple rules."""

    endpoint: JudgeConfig | None = Field(None, description="language model that rewrites; null: the rules")
    supportive: str = Field(SUPPORTIVE, description="prompt template with {question} and {answer}")
    prescriptive: str = Field(PRESCRIPTIVE, description="prompt template with {question} and {answer}")
    sentences: int = Field(RULES.sentences, ge=1, description="maximum number of an answer's sentences the rules keep")
    most_words: int = Field(RULES.most_words, ge=1, description="maximum number of words the rules keep")

    @field_validator("supportive", "prescriptive")
    @classmethod
    def _has_answer_slot(cls, value: str) -> str:
        if "{answer}" not in value:
            raise ValueError("expected a template with {answer} in it")
        return value

    @property
    def rewriter(self) -> Rewriter:
        if self.endpoint is None:
            return RuleRewriter(self.sentences, self.most_words)
        return EndpointRewriter(self.endpoint, self.supportive, self.prescriptive)


class ModelConfig(Section):
    """A base model, named or trained from scratch; or a chat model that only answers, for comparison."""

    model: str | None = Field(None, description="folder or hub id")
    new: SizesConfig | None = Field(None, description="sizes of a Llama that is trained from scratch")
    endpoint: JudgeConfig | None = Field(
        None, description="chat model behind an OpenAI-compatible endpoint, which is not trained"
    )

    @model_validator(mode="after")
    def _check_one_kind(self) -> ModelConfig:
        if [self.model, self.new, self.endpoint].count(None) != 2:
            raise ValueError("expected one of model, new and endpoint")
        return self


class NewModelsConfig(Section):
    """Pretraining of new models."""

    texts: str | None = Field(
        None, description="file of general text: JSON lines with a text, or plain text with empty lines"
    )
    chunk_words: int = Field(200, ge=8, description="maximum number of words of a passage; longer ones are split")
    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)


class MethodConfig(TuningConfig):
    """A method of preference training, which starts from the SFT model."""

    objective: dict[str, Any] = Field(description="objective section of a run")
    sources: list[str] | None = Field(None, description="sources whose pairs the method learns from; null: all")


class MeasuresConfig(Section):
    """Metrics of answers that need a model, besides those computed from the words."""

    bert_score: EncoderConfig | None = Field(None, description="encoder for BERTScore against the better answer")
    sentences: str | None = Field(
        None, description="sentence-transformers model for the cosine similarity with the better answer"
    )
    entailment: str | None = Field(
        None, description="NLI classifier for the probability that the answer follows from its source"
    )
    empathic: str | None = Field(
        None, description="file of completions with labels that a classifier of empathy is trained on"
    )
    judge: JudgeConfig | None = Field(None, description="judge that compares answers with the SFT model's")
    rating: JudgeConfig | None = Field(
        None, description="judge that rates answers from 1 to 5 by a rubric, beside the better answer"
    )


class DialogueConfig(Section):
    """Preferences from dialogues, several models trained on them, and an evaluation of the models' answers."""

    sources: dict[str, SourceConfig] = Field(description="files of answers, by name")
    models: dict[str, ModelConfig] = Field(description="base models, and endpoints to compare them with, by name")
    output: str = Field(description="the recipe's folder")
    template: str | None = Field(
        "Question: {question}\nAnswer:",
        description="template of a question's prompt; null: a user message in the model's chat template",
    )
    filters: FiltersConfig = FiltersConfig()
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    rewriting: RewritingConfig = RewritingConfig()
    held_out: float = Field(0.2, gt=0, lt=0.5, description="share of topics for the test, and again for validation")
    review: ReviewConfig = ReviewConfig()
    new_models: NewModelsConfig = NewModelsConfig()
    sft: TuningConfig = TuningConfig()
    methods: dict[str, MethodConfig] = Field(
        {"dpo": MethodConfig(objective={"name": "dpo", "beta": 0.1})},
        description="methods of preference training, by name; each starts from the SFT model",
    )
    seeds: Seeds = Field([0, 1, 2], description="seeds; every model is trained once with each")
    measures: MeasuresConfig = MeasuresConfig()
    questions: int = Field(100, ge=2, description="maximum number of test questions per source")
    answer_tokens: int = Field(96, ge=1, description="maximum number of tokens of an answer")
    sheet: int = Field(50, ge=1, description="number of questions in each rating sheet for people")
    token_budget: int = Field(8192, ge=1, description="maximum tokens in a micro-batch of evaluation")
    seed: int = Field(0, ge=0, description="seed of the split and of new models")

    @field_validator("template")
    @classmethod
    def _has_question_slot(cls, value: str | None) -> str | None:
        if value is not None and "{question}" not in value:
            raise ValueError("expected a template with {question} in it")
        return value

    @field_validator("sources", "models", "methods")
    @classmethod
    def _check_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not value:
            raise ValueError("expected at least one")
        for name in value:
            if name in RESERVED or not name.replace("_", "").replace(".", "").isalnum():
                raise ValueError(f"'{name}' cannot be a name: letters, digits, . and _, none of {', '.join(RESERVED)}")
        return value

    @model_validator(mode="after")
    def _has_texts(self) -> DialogueConfig:
        if self.new_models.texts is None and any(model.new is not None for model in self.models.values()):
            raise ValueError("new_models.texts: a new model needs general text")
        return self

    @model_validator(mode="after")
    def _check_methods_and_models(self) -> DialogueConfig:
        if not self.trained_models:
            raise ValueError("models: expected at least one that is trained, with model or new")
        for name, method in self.methods.items():
            unknown = [source for source in method.sources or () if source not in self.sources]
            if unknown or method.sources == []:
                source = f"'{unknown[0]}' is not a source" if unknown else "there is no source"
                raise ValueError(f"methods.{name}.sources: {source}; expected some of {', '.join(self.sources)}")
        return self

    @property
    def trained_models(self) -> dict[str, ModelConfig]:
        """The models that are trained, by name."""
        return {name: model for name, model in self.models.items() if model.endpoint is None}

    @property
    def endpoints(self) -> dict[str, JudgeConfig]:
        """The endpoints that the trained models are compared with, by name."""
        return {name: model.endpoint for name, model in self.models.items() if model.endpoint is not None}


ENDPOINT = "endpoint"
"""Name of the only method of a model behind an endpoint."""

RESERVED = ("base", "sft", ENDPOINT, "all", "crisis", "unsafe")
