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

from penchant.api import (
    BertScore,
    DataError,
    ModelError,
    PreferenceGroup,
    RubricJudge,
    SentenceSimilarity,
    as_text,
    check_folder,
    context_length,
    loading_errors,
    local_device,
    locate_errors,
    read_groups,
    refuse_missing,
    require_extra,
    roc_auc,
    rouge_l,
)
from penchant.recipes.dialogue.config import MeasuresConfig
from penchant.recipes.dialogue.data import Question
from penchant.recipes.dialogue.human_centric import (
    empathy,
    facts_recalled,
    grade_level,
    is_crisis,
    politeness,
    refers,
    refuses,
    unsupported,
)
from penchant.recipes.reading import ReadingConfig, compute_log_probs, pair_accuracies

BATCH = 16


class Entailment:
    """The probability of the label that a model calls entailment.

    Args:
        model: folder or hub id of a sequence-classification model, one of whose labels is named "entailment".

    Raises:
        ModelError: there is no such model, or none of its labels is entailment.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        check_folder(model)
        with loading_errors(model):
            self._tokenizer = AutoTokenizer.from_pretrained(model)
            loaded, report = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
        refuse_missing(model, report)
        self._model = loaded.to(local_device()).eval()
        names = {str(name).lower(): number for number, name in loaded.config.id2label.items()}
        if "entailment" not in names:
            raise ModelError(
                f"no label is called entailment; its labels are {', '.join(names)}",
                where=model,
                fix="name a classifier trained on natural language inference, with id2label in its config.json",
            )
        self._label = names["entailment"]
        self._longest = min(self._tokenizer.model_max_length, context_length(loaded.config) or 512)

    def __call__(self, premises: Sequence[str], hypotheses: Sequence[str]) -> list[float]:
        """Probability that each premise entails its hypothesis; a premise too long for the model is cut at its end."""
        import torch

        probabilities: list[float] = []
        for start in range(0, len(premises), BATCH):
            batch = self._tokenizer(
                list(premises[start : start + BATCH]),
                list(hypotheses[start : start + BATCH]),
                truncation="only_first",
                max_length=self._longest,
                padding=True,
                return_tensors="pt",
            )
            with torch.inference_mode():
                logits = self._model(**{name: value.to(self._model.device) for name, value in batch.items()}).logits
            probabilities += logits.float().softmax(-1)[:, self._label].tolist()
        return probabilities


FOLDS = 5


class EmpathyClassifier:
    """Logistic regression on tf-idf of words and pairs of words.

    It knows no more than its labels: where the empathic texts are all of one kind, it has learnt the kind.

    Args:
        labelled: groups of one candidate and its label (`unpaired` in docs/data-formats.md).

    Attributes:
        auc: the area under the ROC curve on held-out texts, `FOLDS` folds; what to think of its probabilities.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: a group without a label, or fewer than `FOLDS` texts of either kind.
    """

    def __init__(self, labelled: Sequence[PreferenceGroup]) -> None:
        with require_extra("recipes", "a classifier needs scikit-learn"):
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.linear_model import LogisticRegression
            from sklearn.model_selection import StratifiedKFold, cross_val_predict
            from sklearn.pipeline import make_pipeline
        if any(group.labels is None for group in labelled):
            raise DataError("a text has no label", fix='a row is {"completion": ..., "label": true}')
        texts = [as_text(candidate) for group in labelled for candidate in group.candidates]
        labels = np.array([label for group in labelled for label in group.labels or ()])
        fewest = min(int(labels.sum()), int((~labels).sum()))
        if fewest < FOLDS:
            raise DataError(f"{fewest} texts of one of the two labels; {FOLDS} are needed", fix="label more texts")
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, max_features=50_000)
        self._model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced"))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        scores = cross_val_predict(self._model, texts, labels, cv=folds, method="decision_function")
        self.auc = roc_auc(scores[labels], scores[~labels])
        self._model.fit(texts, labels)

    def __call__(self, answers: Sequence[str]) -> list[float]:
        """Of each answer, the probability that the labels would call it empathic."""
        return [float(value) for value in self._model.predict_proba(list(answers))[:, 1]] if answers else []


CRISIS, UNSAFE = "crisis", "unsafe"
"""Names of the sets of probe questions, which are evaluated beside the sources' questions."""

Direction = Literal["higher", "lower", "neither"]

METRIC_DIRECTIONS: Mapping[str, Direction] = {
    "preference_accuracy": "higher",
    "rouge_l": "higher",
    "bert_score": "higher",
    "similarity": "higher",
    "rating": "higher",
    "supported": "higher",
    "facts_recalled": "higher",
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
    rubric: RubricJudge | None

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
            RubricJudge(config.rating) if config.rating else None,
        )

    def __call__(self, questions: Sequence[Question], answers: Sequence[str]) -> MetricValues:
        """All metrics of the answers to the test questions and probes.

        Returns:
            For answers to a source's questions: ``words``, ``empathy`` (0 to 3), ``politeness`` (markers per hundred
            words), ``grade_level`` (years of school) and ``refused`` (0 or 1); ``rouge_l``, ``bert_score`` and
            ``similarity`` against the best answer, and a judge's ``rating`` beside it, from 1 to 5; ``supported`` (1
            where no number or name is invented) and ``entailed`` against the material; ``facts_recalled``, the share of
            the best answer's numbers and names, where it has any; ``empathic``, the classifier's probability.
            ``refers`` for crises, ``declines`` for unsafe questions.
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
            recalled = facts_recalled(text, question.reference)
            if recalled is not None:
                values["facts_recalled"][n] = recalled
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
        if self.rubric is not None:
            ratings = self.rubric([questions[n].question for n in sourced], sourced_answers, references)
            values["rating"] = {n: rating for n, rating in zip(sourced, ratings, strict=True) if rating is not None}
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
