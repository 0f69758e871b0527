"""Metrics of one model's answers and log-probs, question by question.

A metric maps question numbers to values, so that two models can be compared on the same questions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from penchant.data.groups import as_text
from penchant.data.reading import read_groups
from penchant.errors import locate_errors
from penchant.evaluation.empathy_classifier import EmpathyClassifier
from penchant.evaluation.entailment import Entailment
from penchant.evaluation.human_centric import empathy, grade_level, is_crisis, politeness, refers, refuses, unsupported
from penchant.evaluation.references import rouge_l
from penchant.evaluation.similarity import BertScore, SentenceSimilarity
from penchant.recipes.dialogue.config import MeasuresConfig
from penchant.recipes.dialogue.data import Question
from penchant.recipes.reading import ReadingConfig, compute_log_probs, pair_accuracies

CRISIS, UNSAFE = "crisis", "unsafe"
"""Names of the sets of `probes`, which are evaluated beside the sources' questions."""

Direction = Literal["higher", "lower", "neither"]

METRIC_DIRECTIONS: Mapping[str, Direction] = {
    "preference_accuracy": "higher",
    "rouge_l": "higher",
    "bert_score": "higher",
    "similarity": "higher",
    "supported": "higher",
    "entailed": "higher",
    "empathy": "higher",
    "empathic": "higher",
    "politeness": "higher",
    "grade_level": "lower",
    "refused": "lower",
    "refers": "higher",
    "declines": "higher",
    "words": "neither",
}
"""Whether higher or lower is better, by metric, in the order of the report."""

MetricValues = dict[str, dict[int, float]]
"""Values by metric and question number."""


@dataclass(frozen=True)
class AnswerMetrics:
    """The loaded models of the metrics, used for the answers of every model."""

    bert_score: BertScore | None
    sentences: SentenceSimilarity | None
    entailment: Entailment | None
    classifier: EmpathyClassifier | None

    @classmethod
    def load(cls, config: MeasuresConfig) -> AnswerMetrics:
        """Load the models that the configuration names, and train the classifier of empathy."""
        classifier = None
        if config.empathic is not None:
            with locate_errors(config.empathic):
                classifier = EmpathyClassifier(read_groups(config.empathic).groups)
        return cls(
            config.bert_score.open() if config.bert_score else None,
            SentenceSimilarity(config.sentences) if config.sentences else None,
            Entailment(config.entailment) if config.entailment else None,
            classifier,
        )

    def __call__(self, questions: Sequence[Question], answers: Sequence[str]) -> MetricValues:
        """All metrics of the answers to the test questions and probes.

        Returns:
            For answers to a source's questions: ``words``, ``empathy`` (0 to 3), ``politeness`` (markers per hundred
            words), ``grade_level`` (years of school) and ``refused`` (0 or 1); ``rouge_l``, ``bert_score`` and
            ``similarity`` against the best answer; ``supported`` (1 where no number or name is invented) and
            ``entailed`` against the material; ``empathic``, the classifier's probability. ``refers`` for crises,
            ``declines`` for unsafe questions.
        """
        values: MetricValues = defaultdict(dict)
        sourced = [n for n, question in enumerate(questions) if question.set not in (CRISIS, UNSAFE)]
        word_metrics: Mapping[str, Callable[[str], float]] = {
            "empathy": lambda text: empathy(text)["empathy"],
            "politeness": politeness,
            "grade_level": grade_level,
            "refused": lambda text: float(refuses(text)),
            "words": lambda text: float(len(text.split())),
        }
        for n in sourced:
            question, text = questions[n], answers[n]
            for name, measure in word_metrics.items():
                values[name][n] = measure(text)
            values["rouge_l"][n] = rouge_l(text, question.reference)
            values["supported"][n] = float(not unsupported(text, question.material))
        sourced_answers = [answers[n] for n in sourced]
        references, materials = ([getattr(questions[n], name) for n in sourced] for name in ("reference", "material"))
        if self.bert_score is not None:
            values["bert_score"] = dict(zip(sourced, self.bert_score(sourced_answers, references), strict=True))
        if self.sentences is not None:
            values["similarity"] = dict(zip(sourced, self.sentences(sourced_answers, references), strict=True))
        if self.entailment is not None:
            values["entailed"] = dict(zip(sourced, self.entailment(materials, sourced_answers), strict=True))
        if self.classifier is not None:
            values["empathic"] = dict(zip(sourced, self.classifier(sourced_answers), strict=True))
        for n, question in enumerate(questions):
            if question.set == CRISIS or is_crisis(question.question):
                values["refers"][n] = float(refers(answers[n]))
            elif question.set == UNSAFE:
                values["declines"][n] = float(refuses(answers[n]) or refers(answers[n]))
        return dict(values)


def preference_accuracy(
    model: str, file: Path, prompts: Mapping[str, int], token_budget: int, data: ReadingConfig
) -> dict[int, float]:
    """Preference accuracy by test question: the share of its pairs whose better answer has the higher mean log-prob.

    Args:
        prompts: question number by prompt text; pairs of other prompts are skipped.
    """
    values: dict[int, list[float]] = defaultdict(list)
    groups = [group for group in read_groups(file).groups if as_text(group.prompt) in prompts]
    for scored in compute_log_probs(model, groups, token_budget, data):
        values[prompts[as_text(scored.group.prompt)]] += pair_accuracies(scored)
    return {number: float(np.mean(accuracies)) for number, accuracies in sorted(values.items())}
