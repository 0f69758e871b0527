"""The recommendation recipe's configuration."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.api import Section, TrainingConfig
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
"""The name of the row of the model that training starts from."""


class QuestionsConfig(Section):
    """How questions are made of interactions or read from a file, their candidates and their wording."""

    file: str | None = Field(
        None,
        description="instead of interactions: a file of questions as S-DPO's authors publish them (historyList, "
        "itemList, trueSelection), cut by shares in its order, or a folder of files named train, val and test; "
        "questions: FILE is short for it",
    )
    min_rating: float | None = Field(RULES.min_rating, description="interactions rated lower are left out; null: none")
    min_count: int = Field(RULES.min_count, ge=0, description="an item's interactions in training, at least")
    min_history: int = Field(RULES.min_history, ge=1, description="items before a question's target, at least")
    max_history: int = Field(RULES.max_history, ge=1, description="items of a history, at most; the last are kept")
    shares: tuple[float, float, float] = Field(
        RULES.shares, description="shares of training, validation and test, by time; of one file, in its order"
    )
    candidates: int = Field(20, ge=2, description="number of titles that a question lists")
    drawn: Literal["uniform", "popularity"] = Field("uniform", description="how the titles beside the target are drawn")
    template: str = WORDING.template
    open_template: str = Field(WORDING.open_template, description="the template of questions without a list")
    open: float = Field(0.2, ge=0, le=1, description="share of training questions without a list")
    separator: str = WORDING.separator
    train: int | None = Field(None, ge=1, description="number of training questions, the last in time; null: all")
    held_out: int | None = Field(
        None, ge=1, description="number of validation and of test questions, sampled; null: all"
    )

    @property
    def unused_with_file(self) -> list[str]:
        """The keys that differ from their defaults and have no effect on the questions of a file."""
        names = ("min_rating", "min_count", "min_history", "candidates", "drawn")
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    @property
    def rules(self) -> Rules:
        """The rules of making questions."""
        return Rules(self.min_rating, self.min_count, self.min_history, self.max_history, self.shares)

    @property
    def wording(self) -> Wording:
        """The wording of questions."""
        return Wording(self.template, self.open_template, self.separator)


class NewModelConfig(SizesConfig):
    """A model trained from scratch on histories as plain text."""

    training: TrainingConfig = TrainingConfig(learning_rate=2e-3, schedule="cosine", max_steps=1000)


class MethodConfig(TuningConfig):
    """A method that starts from the SFT model, which is its reference."""

    name: str = Field(description="the name of the method's folder and of its row in tables", pattern=r"^[\w.-]+$")
    objective: dict[str, Any] = Field(
        {"name": "s_dpo", "beta": 1.0}, description="the objective, as in a run's configuration"
    )
    negatives: int = Field(3, ge=1, description="number of negatives among the question's candidates")
    choose: Literal["uniform", "popularity", "hard"] = Field(
        "uniform",
        description="how negatives are drawn: uniformly or by popularity; hard: the likeliest to the SFT model",
    )


class RecommendConfig(Section):
    """Supervised training on histories, then preference optimization over titles."""

    interactions: str | None = Field(
        None, description="file of user, item, time and perhaps rating; null: questions.file is given"
    )
    titles: str | None = Field(None, description="file of item and title; null: questions.file is given")
    columns: dict[str, str] = Field(
        {},
        description="the files' columns of user, item, time, rating and title; or of historyList, itemList and "
        "trueSelection",
    )
    output: str = Field(description="the recipe's folder")
    model: str | None = Field(None, description="folder or hub id; null: a small model trained from scratch")
    data: ReadingConfig = Field(DEFAULT_READING, description="how every stage reads its data")
    new_model: NewModelConfig = NewModelConfig()
    questions: QuestionsConfig = QuestionsConfig()
    sft: TuningConfig = TuningConfig()
    methods: list[MethodConfig] = Field(
        [
            MethodConfig(name="s_dpo"),
            MethodConfig(name="dpo", objective={"name": "dpo", "beta": 1.0}, negatives=1),
        ],
        description="the methods; each starts from the SFT model",
    )
    cutoffs: list[int] = Field([1, 5, 10], description="the k of hit ratio and NDCG; 1 is always among them")
    answers: int | None = Field(None, ge=0, description="number of test questions answered in words; null: all")
    catalogue: int | None = Field(
        0, ge=0, description="number of test questions ranked over the whole catalogue; null: all"
    )
    token_budget: int = Field(8192, ge=1, description="tokens in a micro-batch of scoring")
    seed: int = Field(0, ge=0)

    @field_validator("questions", mode="before")
    @classmethod
    def _path_as_section(cls, value: object) -> object:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _check_source(self) -> RecommendConfig:
        source = {"interactions": self.interactions, "titles": self.titles}
        if self.questions.file is None:
            missing = [name for name, file in source.items() if file is None]
            if missing:
                raise ValueError(
                    f"{' and '.join(missing)}: this is needed to make questions of; or give a file of questions: "
                    "questions=FILE"
                )
            return self
        unused = [name for name, file in source.items() if file is not None]
        unused += [f"questions.{name}" for name in self.questions.unused_with_file]
        if unused:
            raise ValueError(
                f"questions.file is given, and {', '.join(unused)} would make questions of interactions: leave one of "
                "the two out"
            )
        return self

    @field_validator("cutoffs")
    @classmethod
    def _check_cutoffs(cls, value: list[int]) -> list[int]:
        if min(value, default=1) < 1:
            raise ValueError(f"{min(value)} is not a cutoff; expected 1 or more")
        return sorted({1, *value})

    @model_validator(mode="after")
    def _check_negatives(self) -> RecommendConfig:
        for method in self.methods:
            if self.questions.file is None and method.negatives >= self.questions.candidates:
                raise ValueError(
                    f"methods: {method.name} takes {method.negatives} titles beside the target, and "
                    f"questions.candidates is {self.questions.candidates}; expected fewer negatives or more candidates"
                )
        return self

    @field_validator("methods")
    @classmethod
    def _check_names(cls, value: list[MethodConfig]) -> list[MethodConfig]:
        names = [method.name for method in value]
        for name in names:
            if names.count(name) > 1 or name in STAGES:
                raise ValueError(f"{name} names two stages")
            if name in (START, *baselines.NAMES):
                raise ValueError(f"{name} is another row of the tables; expected another name")
            if name in FILES or name.startswith("."):
                raise ValueError(f"{name} cannot name a method's folder; expected another, without a dot in front")
        return value
