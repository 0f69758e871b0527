"""The recommendation recipe's configuration, and its baselines: rankings without language."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from penchant.api import Section, TrainingConfig
from penchant.recipes.reading import DEFAULT_READING, ReadingConfig
from penchant.recipes.recommend import config as baselines
from penchant.recipes.recommend.histories import Histories, Question, Rules
from penchant.recipes.recommend.prompts import Wording
from penchant.recipes.small_llama import SizesConfig
from penchant.recipes.tuning import TuningConfig

CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS = "chance", "popularity", "last item", "item-kNN"
LIST_POSITION, LIST_OVERLAP = "place in the list alone", "list alone"
NAMES = (CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS, LIST_POSITION, LIST_OVERLAP)
"""The names of the baselines' rows in tables; no method may have one of them."""

Candidates = Sequence[str]
Scorer = Callable[[Question, Candidates], Sequence[float]]


def chance(question: Question, candidates: Candidates) -> Sequence[float]:
    """A score of 0 for every candidate."""
    return [0.0] * len(candidates)


def popularity(histories: Histories) -> Scorer:
    """A scorer by the number of an item's interactions in training."""
    return lambda question, candidates: [float(histories.counts[item]) for item in candidates]


def last_item(histories: Histories) -> Scorer:
    """A first-order Markov chain: how often the item followed the last one in training; ties broken by popularity."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for question in histories.train:
        follows[question.history[-1]][question.target] += 1
    scale = 1 + max(histories.counts.values())

    def score(question: Question, candidates: Candidates) -> Sequence[float]:
        counts_after = follows.get(question.history[-1], Counter())
        return [counts_after[item] + histories.counts[item] / scale for item in candidates]

    return score


def neighbours(histories: Histories) -> Scorer:
    """Item-kNN (Sarwar et al. 2001, section 3.1): the cosine of two items' training users, summed over the history."""
    start = min(question.time for question in histories.validation)
    users: dict[str, set[str]] = defaultdict(set)
    for user, times in histories.times_by_user.items():
        for item, time in times.items():
            if time < start:
                users[item].add(user)

    @cache
    def cosine(a: str, b: str) -> float:
        both = len(users[a] & users[b])
        return both / math.sqrt(len(users[a]) * len(users[b])) if both else 0.0

    return lambda question, candidates: [
        sum(cosine(item, past_item) for past_item in question.history) for item in candidates
    ]


def position(candidate_lists: Mapping[str, Candidates], train: Sequence[Question]) -> Scorer:
    """A scorer by how often a position of the list held the target in training; at chance if lists are shuffled."""
    positions = Counter(candidate_lists[question.id].index(question.target) for question in train)
    return lambda question, candidates: [float(positions[i]) for i in range(len(candidates))]


def overlap(candidate_lists: Mapping[str, Candidates], train: Sequence[Question]) -> Scorer:
    """A scorer by the overlap of the list with the lists of training questions with that target; it ignores histories.

    It is no better than popularity if lists do not depend on their targets.
    """
    questions_by_item: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(train):
        for item in candidate_lists[question.id]:
            questions_by_item[item].append(number)

    def score(question: Question, candidates: Candidates) -> Sequence[float]:
        common_items = Counter(number for item in candidates for number in questions_by_item[item])
        votes: Counter[str] = Counter()
        for number, items in common_items.items():
            votes[train[number].target] = max(votes[train[number].target], items)
        return [float(votes[item]) for item in candidates]

    return score


RULES, WORDING = Rules(), Wording()

STAGES = ("questions", "model", "sft", "evaluation")
FILES = ("result.json", "report.html")
START = "start"
"""The name of the row of the model that training starts from."""


class QuestionsConfig(Section):
    """How questions are made of interactions, their candidates and their wording."""

    min_rating: float | None = Field(RULES.min_rating, description="interactions rated lower are left out; null: none")
    min_count: int = Field(RULES.min_count, ge=0, description="an item's interactions in training, at least")
    min_history: int = Field(RULES.min_history, ge=1, description="items before a question's target, at least")
    max_history: int = Field(RULES.max_history, ge=1, description="items of a history, at most; the last are kept")
    shares: tuple[float, float, float] = Field(
        RULES.shares, description="shares of training, validation and test, by time"
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

    interactions: str = Field(description="file of user, item, time and perhaps rating")
    titles: str = Field(description="file of item and title")
    columns: dict[str, str] = Field({}, description="the files' columns of user, item, time, rating and title")
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

    @field_validator("cutoffs")
    @classmethod
    def _check_cutoffs(cls, value: list[int]) -> list[int]:
        if min(value, default=1) < 1:
            raise ValueError(f"{min(value)} is not a cutoff; expected 1 or more")
        return sorted({1, *value})

    @model_validator(mode="after")
    def _check_negatives(self) -> RecommendConfig:
        for method in self.methods:
            if method.negatives >= self.questions.candidates:
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
