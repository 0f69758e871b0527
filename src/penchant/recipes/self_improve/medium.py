"""The learner backend: what differs between learners of text and of pictures; the loop is the same for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from penchant.evaluation.report import Figure, Sample
from penchant.recipes.self_improve.learner import AnswerFunction


@dataclass(frozen=True)
class CollapseMetrics:
    """Metrics that show whether a learner collapses, from its answers to some prompts.

    Attributes:
        amount: mean size of an answer, in the backend's unit.
        distinct: variety of the answers; it falls when they become alike.
        distance: distance from the first learner; 0 for the first learner.
    """

    amount: float
    distinct: float
    distance: float


class LearnerBackend(Protocol):
    """What the loop needs from a learner of texts or of pictures.

    Attributes:
        amount, distinct, distance: descriptions of the `CollapseMetrics` in words, with units.
    """

    amount: ClassVar[str]
    distinct: ClassVar[str]
    distance: ClassVar[str]

    def check(self, prompts: Sequence[str]) -> None:
        """Check that the learner can answer the prompts and be trained, before any file is written.

        Raises:
            ConfigError: the error names the key and the reason.
        """
        ...

    def load(self, model: str) -> AnswerFunction:
        """Load a model folder or hub id and return its answer function."""
        ...

    def read(self, answer: str) -> object:
        """The argument of a verifier function for an answer: the text, or the picture's pixels."""
        ...

    def tune(self, folder: Path, model: str, seed: int) -> str:
        """Train a model on ``folder/train.jsonl``; an interrupted training gives the same weights when it is repeated.

        Returns:
            The new model's folder.
        """
        ...

    def collapse_metrics(
        self, model: str, first_model: str, prompts: Sequence[str], answers: Sequence[str]
    ) -> CollapseMetrics:
        """Collapse metrics of a model's answers, with the distance from `first_model`."""
        ...

    def show(
        self, prompts: Sequence[str], first_answers: Sequence[str], last_answers: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        """Samples and figures of the report: answers before the first round and after the last."""
        ...
