"""The recommendation recipe's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.config import TrainingConfig
from penchant.config_section import Section
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.histories import Rules
from penchant.recipes.recommend.prompts import Wording
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

RULES, WORDING = Rules(), Wording()

STAGES = ("questions", "model", "sft", "evaluation")
FILES = ("result.json", "report.html")
START = "start"
"""The row of the model that training starts from."""


class QuestionsConfig(Section):
    """What becomes a question, what it offers, and how it is put."""

    min_rating: float | None = Field(RULES.min_rating, description="ratings below are left out; null takes all")
    min_count: int = Field(RULES.min_count, ge=0, description="an item's interactions in training")
    min_history: int = Field(RULES.min_history, ge=1, description="items before a question")
    max_history: int = Field(RULES.max_history, ge=1, description="the last are kept")
    shares: tuple[float, float, float] = Field(RULES.shares, description="training, validation, test, by time")
    candidates: int = Field(20, ge=2, description="titles a question offers")
    drawn: Literal["uniform", "popularity"] = Field("uniform", description="how titles not taken are drawn")
    template: str = WORDING.template
    open_template: str = Field(WORDING.open_template, description="where no list is offered")
    open: float = Field(0.2, ge=0, le=1, description="share of training questions put without their list")
    separator: str = WORDING.separator
    train: int | None = Field(None, ge=1, description="training questions at most, the last in time; null: all")
    held_out: int | None = Field(None, ge=1, description="validation and test questions at most, drawn; null: all")

    @property
    def rules(self) -> Rules:
        return Rules(self.min_rating, self.min_count, self.min_history, self.max_history, self.shares)

    @property
    def wording(self) -> Wording:
        return Wording(self.template, self.open_template, self.separator)


class NewModelConfig(SizesConfig):
    """A model from nothing: trained on histories as text before it is asked."""

    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)


class MethodConfig(TuningConfig):
    """A method that starts from the SFT model, which is its reference."""

    name: str = Field(description="its folder and its name in tables", pattern=r"^[\w.-]+$")
    objective: dict[str, Any] = Field({"name": "s_dpo", "beta": 1.0}, description="as in a run")
    negatives: int = Field(3, ge=1, description="titles beside the target, of those the question offers")
    choose: Literal["uniform", "popularity", "hard"] = Field(
        "uniform",
        description="drawn alike or by how often they were taken; hard: those the SFT model finds likeliest",
    )


class RecommendConfig(Section):
    """Sequences, supervised training, then preferences over titles."""

    interactions: str = Field(description="file of user, item, time and perhaps rating")
    titles: str = Field(description="file of item and title")
    columns: dict[str, str] = Field({}, description="user, item, time, rating, title: the files' names for them")
    output: str = Field(description="the recipe's folder")
    model: str | None = Field(None, description="folder or hub id; null: a small one from nothing")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    new_model: NewModelConfig = NewModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    sft: TuningConfig = TuningConfig()
    methods: list[MethodConfig] = Field(
        [
            MethodConfig(name="s_dpo"),
            MethodConfig(name="dpo", objective={"name": "dpo", "beta": 1.0}, negatives=1),
        ],
        description="each from the SFT model",
    )
    cutoffs: list[int] = Field([1, 5, 10], description="the k of hit ratio and NDCG; 1 is always among them")
    answers: int | None = Field(None, ge=0, description="test questions answered in words; null: all")
    catalogue: int | None = Field(0, ge=0, description="test questions asked of the whole catalogue; null: all")
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of what is only read")
    seed: int = Field(0, ge=0)

    @field_validator("cutoffs")
    @classmethod
    def _from_one(cls, value: list[int]) -> list[int]:
        if min(value, default=1) < 1:
            raise ValueError(f"{min(value)} is no cutoff; expected 1 or more")
        return sorted({1, *value})

    @model_validator(mode="after")
    def _offers_enough(self) -> RecommendConfig:
        for method in self.methods:
            if method.negatives >= self.questions.candidates:
                raise ValueError(
                    f"methods: {method.name} takes {method.negatives} titles beside the target, and "
                    f"questions.candidates is {self.questions.candidates}; expected fewer negatives or more candidates"
                )
        return self

    @field_validator("methods")
    @classmethod
    def _named_apart(cls, value: list[MethodConfig]) -> list[MethodConfig]:
        names = [each.name for each in value]
        for name in names:
            if names.count(name) > 1 or name in STAGES:
                raise ValueError(f"{name} names two stages")
            if name in (START, *baselines.NAMES):
                raise ValueError(f"{name} is another row of the tables; expected a name of its own")
            if name in FILES or name.startswith("."):
                raise ValueError(f"{name} cannot name a method's folder; expected another, without a dot in front")
        return value
