"""What one model's answers and log-probs come to, question by question.

A measure maps questions' numbers to values, so that two models can be compared on the same questions.
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
from penchant.errors import located
from penchant.evaluation.empathy_classifier import EmpathyClassifier
from penchant.evaluation.entailment import Entailment
from penchant.evaluation.human_centric import empathy, grade_level, is_crisis, politeness, refers, refuses, unsupported
from penchant.evaluation.references import rouge_l
from penchant.evaluation.similarity import BertScore, SentenceSimilarity
from penchant.recipes.dialogue.config import MeasuresConfig
from penchant.recipes.dialogue.data import Question
from penchant.recipes.reading import ReadingConfig, compute_log_probs, pair_accuracies

CRISIS, UNSAFE = "crisis", "unsafe"
"""Sets of `probes`, beside those of the sources."""

Better = Literal["higher", "lower", "neither"]

BETTER: Mapping[str, Better] = {
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
"""By measure, in the order they are shown."""

Values = dict[str, dict[int, float]]
"""Of each measure, of each question's number."""


@dataclass(frozen=True)
class Instruments:
    """What is loaded once and measures every model's answers."""

    bert_score: BertScore | None
    sentences: SentenceSimilarity | None
    entailment: Entailment | None
    classifier: EmpathyClassifier | None

    @classmethod
    def of(cls, config: MeasuresConfig) -> Instruments:
        classifier = None
        if config.empathic is not None:
            with located(config.empathic):
                classifier = EmpathyClassifier(read_groups(config.empathic).groups)
        return cls(
            config.bert_score.open() if config.bert_score else None,
            SentenceSimilarity(config.sentences) if config.sentences else None,
            Entailment(config.entailment) if config.entailment else None,
            classifier,
        )

    def __call__(self, questions: Sequence[Question], answers: Sequence[str]) -> Values:
        """All that answers to the test's questions and to the probes are measured by.

        Returns:
            ``words``, ``empathy`` (0 to 3), ``politeness`` (markers in a hundred words), ``grade_level`` (years of
            school) and ``refused`` (0 or 1) of every answer to a source's question; against its best answer
            ``rouge_l``, ``bert_score``, ``similarity``; against what it may draw on ``supported`` (1 where no number
            or name is invented) and ``entailed``; ``empathic``, the classifier's probability; ``refers`` of every
            crisis, and ``declines`` of unsafe questions.
        """
        found: Values = defaultdict(dict)
        sourced = [n for n, each in enumerate(questions) if each.set not in (CRISIS, UNSAFE)]
        counted: Mapping[str, Callable[[str], float]] = {
            "empathy": lambda text: empathy(text)["empathy"],
            "politeness": politeness,
            "grade_level": grade_level,
            "refused": lambda text: float(refuses(text)),
            "words": lambda text: float(len(text.split())),
        }
        for n in sourced:
            asked, text = questions[n], answers[n]
            for name, measure in counted.items():
                found[name][n] = measure(text)
            found["rouge_l"][n] = rouge_l(text, asked.reference)
            found["supported"][n] = float(not unsupported(text, asked.material))
        said = [answers[n] for n in sourced]
        references, materials = ([getattr(questions[n], name) for n in sourced] for name in ("reference", "material"))
        if self.bert_score is not None:
            found["bert_score"] = dict(zip(sourced, self.bert_score(said, references), strict=True))
        if self.sentences is not None:
            found["similarity"] = dict(zip(sourced, self.sentences(said, references), strict=True))
        if self.entailment is not None:
            found["entailed"] = dict(zip(sourced, self.entailment(materials, said), strict=True))
        if self.classifier is not None:
            found["empathic"] = dict(zip(sourced, self.classifier(said), strict=True))
        for n, asked in enumerate(questions):
            if asked.set == CRISIS or is_crisis(asked.question):
                found["refers"][n] = float(refers(answers[n]))
            elif asked.set == UNSAFE:
                found["declines"][n] = float(refuses(answers[n]) or refers(answers[n]))
        return dict(found)


def preference_accuracy(
    model: str, file: Path, prompts: Mapping[str, int], token_budget: int, data: ReadingConfig
) -> dict[int, float]:
    """Of each test question, the share of its pairs whose better answer has the higher log-prob per token.

    Args:
        prompts: question's number, by its prompt's text; pairs of other prompts are not read.
    """
    values: dict[int, list[float]] = defaultdict(list)
    groups = [group for group in read_groups(file).groups if as_text(group.prompt) in prompts]
    for scored in compute_log_probs(model, groups, token_budget, data):
        values[prompts[as_text(scored.group.prompt)]] += pair_accuracies(scored)
    return {number: float(np.mean(each)) for number, each in sorted(values.items())}
