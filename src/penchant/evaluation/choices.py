"""Multiple-choice questions, and how often a model puts the right option first; no model is needed here.

Legend: Q questions of a task, K options of a question (questions may differ in K).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penchant.data.groups import Message, PreferenceGroup
from penchant.evaluation.choices_metrics import METRICS, OFFICIAL, OfWeights, mean_of
from penchant.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_weighted, require_finite

SCORES = {
    "log": "log-prob per token of the option, end-of-turn token excluded",
    "log_sum": "summed log-prob of the option, end-of-turn token included",
    "head": "reward by the preference head",
}
"""Definitions of the scores; the highest-scored option is the choice. For log, head: arXiv 2405.20053, section 4."""

_DEFINITIONS = {
    "ties": "questions whose highest score is shared by several options; wrong whichever of them is right",
    "chance": "mean of 1/K over the questions",
    "majority": "share right of always taking the place (first, second, ...) that is right most often in this file",
    "longest_option": "share right of always taking the option of most characters (t equal ones: 1/t each)",
    "shortest_option": "share right of always taking the option of fewest characters (t equal ones: 1/t each)",
}


@dataclass(frozen=True)
class Question:
    """A prompt, K >= 2 options, and the index of the right one.

    Attributes:
        right: index of the right option.
        task: name of the task it belongs to.
        where: file and row; no two questions of a task have the same.
        cue: text between prompt and option in plain text, as in ``"\\nAnswer:"``; not used with a chat template.
        passage: text that several questions are about; intervals are over passages, else prompts.
        number: true number where the options are numbers, which the right option is the nearest to.
    """

    prompt: str
    options: tuple[str, ...]
    right: int
    task: str
    where: str
    cue: str = ""
    passage: str | None = None
    number: float | None = None

    def __post_init__(self) -> None:
        if len(self.options) < 2:
            raise ValueError(f"a question needs at least two options, this has {len(self.options)}")
        if not 0 <= self.right < len(self.options):
            raise ValueError(f"right is {self.right}, expected an index below {len(self.options)}")

    @property
    def true_value(self) -> float:
        """The true number, or the right option's index where options are no numbers."""
        return float(self.right) if self.number is None else self.number


def plain_group(question: Question) -> PreferenceGroup:
    """The question for a model without a chat template: an option continues the prompt, a space between them."""
    prompt = question.prompt + question.cue
    space = " " if prompt and not prompt[-1].isspace() else ""
    options = tuple(option if option[:1].isspace() else space + option for option in question.options)
    return PreferenceGroup(prompt, options, preferred=question.right, id=question.where, source=question.task)


def chat_group(question: Question) -> PreferenceGroup:
    """The question as a user's message, and each option as the assistant's."""
    options = tuple((Message(role="assistant", content=option),) for option in question.options)
    prompt = (Message(role="user", content=question.prompt),)
    return PreferenceGroup(prompt, options, preferred=question.right, id=question.where, source=question.task)


@dataclass(frozen=True)
class ScoredQuestion:
    """A question with K scores of its options for every requested name in `SCORES`.

    Raises:
        ModelError: a score is not finite.
    """

    question: Question
    scores: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        for name, values in self.scores.items():
            if len(values) != len(self.question.options):
                raise ValueError(f"{len(self.question.options)} options but {len(values)} scores '{name}'")
            require_finite(values, f"score '{name}' of option", self.question.where)

    def is_right(self, name: str) -> bool:
        """Whether the right option scores above every other; a tie is not right."""
        scores, right = self.scores[name], self.question.right
        return all(scores[right] > score for k, score in enumerate(scores) if k != right)

    def choice(self, name: str) -> int:
        """Index of the option that counts as chosen: the highest-scored; of a tie one that is not right."""
        scores, right = self.scores[name], self.question.right
        highest = [k for k, score in enumerate(scores) if score == max(scores)]
        return next((k for k in highest if k != right), right)

    def chosen_value(self, name: str) -> float:
        """The chosen option as a number, or its index where options are no numbers."""
        choice = self.choice(name)
        return float(choice) if self.question.number is None else float(self.question.options[choice])

    def is_tie(self, name: str) -> bool:
        """Whether several options share the highest score."""
        return self.scores[name].count(max(self.scores[name])) > 1


@dataclass(frozen=True)
class Official:
    """The number that a task is published by, for a model.

    Attributes:
        value: name in `SCORES` -> the mean of the task's metrics in `OFFICIAL`; the accuracy for tasks without.
        chance: what guesses come to.
        metrics: name in `METRICS` -> name in `SCORES` -> value; empty for tasks that are published by accuracy alone.
    """

    value: Mapping[str, Estimate]
    chance: float
    metrics: Mapping[str, Mapping[str, Estimate]]

    def to_json(self) -> dict[str, Any]:
        metrics = {name: _json(estimates) for name, estimates in self.metrics.items()}
        return {"value": _json(self.value), "chance": self.chance, "metrics": metrics}


@dataclass(frozen=True)
class TaskReport:
    """Accuracies of a model on a task's questions, and of baselines that need no model.

    Attributes:
        questions: number of scored questions.
        options: K -> number of questions with K options.
        accuracy: name in `SCORES` -> share of questions answered right, with its 95 % interval.
        ties: name in `SCORES` -> how many questions were ties; see `definitions`.
        chance: mean of 1/K.
        baselines: name -> share right, with its 95 % interval.
        official: the number that the task is published by.
        left_out: reason -> number of rows that gave no scored question.
    """

    name: str
    questions: int
    options: Mapping[int, int]
    accuracy: Mapping[str, Estimate]
    ties: Mapping[str, int]
    chance: float
    baselines: Mapping[str, Estimate]
    official: Official
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "questions": self.questions,
            "options": {str(k): count for k, count in self.options.items()},
            "accuracy": _json(self.accuracy),
            "ties": dict(self.ties),
            "chance": self.chance,
            "baselines": _json(self.baselines),
            "official": self.official.to_json(),
            "left_out": dict(self.left_out),
        }


def _json(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in estimates.items()}


def evaluate_choices(
    name: str,
    scored: Sequence[ScoredQuestion],
    *,
    left_out: Mapping[str, int] | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> TaskReport:
    """Accuracy by every score, with 95 % intervals over passages (or prompts), and the baselines' accuracies.

    Args:
        name: name of the task.
        scored: at least one question; all with the same names of scores.
        left_out: reason -> number of rows left out earlier, for the report.
        resamples, seed: of the bootstrap.
    """
    if not scored:
        raise ValueError("a task needs at least one question")
    questions = [row.question for row in scored]
    texts = [question.prompt if question.passage is None else question.passage for question in questions]
    # Numbered in the order of the texts, so that the order of the questions does not change the resamples.
    number = {text: i for i, text in enumerate(sorted(set(texts)))}
    clusters = np.array([number[text] for text in texts])

    def mean(values: Sequence[float]) -> Estimate:
        return bootstrap_mean(values, clusters, resamples=resamples, seed=seed)

    accuracy = {score: mean([row.is_right(score) for row in scored]) for score in scored[0].scores}
    chance = math.fsum(1 / len(question.options) for question in questions) / len(questions)
    official = Official(accuracy, chance, {})
    if name in OFFICIAL:
        official = _official(
            OFFICIAL[name],
            scored,
            lambda statistic: bootstrap_weighted(statistic, clusters, resamples=resamples, seed=seed),
        )
    return TaskReport(
        name=name,
        questions=len(questions),
        options=dict(sorted(Counter(len(question.options) for question in questions).items())),
        accuracy=accuracy,
        ties={score: sum(row.is_tie(score) for row in scored) for score in scored[0].scores},
        chance=chance,
        baselines={
            "majority": mean(_majority(questions)),
            "longest_option": mean([_credit(question, max) for question in questions]),
            "shortest_option": mean([_credit(question, min) for question in questions]),
        },
        official=official,
        left_out=dict(left_out or {}),
    )


def _official(
    names: Sequence[str], scored: Sequence[ScoredQuestion], bootstrap: Callable[[OfWeights], Estimate]
) -> Official:
    """The metrics `names` of scored questions, and their mean."""
    true = np.array([row.question.true_value for row in scored])

    def estimates(parts: Sequence[str]) -> dict[str, Estimate]:
        return {
            score: bootstrap(mean_of(parts, np.array([row.chosen_value(score) for row in scored]), true))
            for score in scored[0].scores
        }

    chance = math.fsum(METRICS[name].chance(true) for name in names) / len(names)
    return Official(estimates(names), chance, {name: estimates([name]) for name in names})


def definitions(scores: Sequence[str]) -> dict[str, str]:
    """Definitions of the numbers of a `TaskReport` with these scores, by name."""
    accuracies = {
        name: f"share of questions whose right option has the highest {SCORES[name]} (a tie is wrong)"
        for name in scores
    }
    return {**accuracies, **_DEFINITIONS}


def _majority(questions: Sequence[Question]) -> list[float]:
    counts = Counter(question.right for question in questions)
    majority_index = min(counts, key=lambda right: (-counts[right], right))
    return [float(question.right == majority_index) for question in questions]


def _credit(question: Question, pick: Callable[[list[int]], int]) -> float:
    lengths = [len(option) for option in question.options]
    picked = pick(lengths)
    return float(lengths[question.right] == picked) / lengths.count(picked)
