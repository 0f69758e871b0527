"""What differs between a learner that writes and one that paints; the loop is the same for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from penchant.evaluation.report import Figure, Sample
from penchant.recipes.self_improve.learner import Answer


@dataclass(frozen=True)
class Signs:
    """What shows that a learner collapses, of its answers to some prompts.

    Attributes:
        amount: how much is in an answer, the mean.
        distinct: falls where answers become one another.
        distance: from the learner it all began with; 0 of that one.
    """

    amount: float
    distinct: float
    distance: float


class Medium(Protocol):
    """Texts or pictures.

    Attributes:
        amount, distinct, distance: in words, what `Signs` are counted in.
    """

    amount: ClassVar[str]
    distinct: ClassVar[str]
    distance: ClassVar[str]

    def check(self, prompts: Sequence[str]) -> None:
        """Refuse, before anything is made, what could not be answered or tuned.

        Raises:
            ConfigError: says which key, and why.
        """
        ...

    def load(self, model: str) -> Answer:
        """Make a model's folder or hub id answer."""
        ...

    def read(self, answer: str) -> object:
        """What a verifier's function is given of an answer."""
        ...

    def tune(self, folder: Path, model: str, seed: int) -> str:
        """Tune a model on ``folder/train.jsonl``; what was interrupted goes on, or begins anew, to the same bits.

        Returns:
            The new model's folder.
        """
        ...

    def signs(self, model: str, first: str, prompts: Sequence[str], answers: Sequence[str]) -> Signs:
        """Of a model's answers, where it all began with `first`."""
        ...

    def show(
        self, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        """Some prompts' answers before the first round and after the last, for the page."""
        ...
