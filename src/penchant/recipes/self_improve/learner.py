"""The learner backend: what differs between learners of text and of pictures; the loop is the same for both."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from penchant.api import Figure, Sample, Text, read_record, write_atomically

FILE = "served.json"
DAMAGED = "put the whole file back, or name another output folder"
"""Suggested fix for a damaged file of the run."""


@dataclass(frozen=True)
class ServedModel:
    """A learner that is or was served.

    Attributes:
        update: number of the update that made it; 0 for the first learner.
        model: folder or hub id.
    """

    update: int
    model: str


def read_served(folder: Path) -> ServedModel | None:
    """The served learner; None before the first one is written."""
    file = folder / FILE
    if not file.exists():
        return None
    record = read_record(file, ("update", "model"), DAMAGED)
    return ServedModel(record["update"], record["model"])


def write_served(folder: Path, served: ServedModel) -> None:
    """Serve this learner from now on."""
    write_atomically(folder / FILE, json.dumps(asdict(served)) + "\n")


AnswerFunction = Callable[[Sequence[Text], Sequence[int]], list[str]]
"""Function of prompts and one seed per prompt that returns an answer to every prompt, a text or a picture's name.

The same model, prompt and seed give the same answer, whatever else is in the batch."""


def answer_seed(*key: int | str) -> int:
    """A seed below 2 ** 63 for sampling an answer, from values that identify the answer."""
    return int.from_bytes(hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()) >> 1


class Learner:
    """Answers prompts with the served model.

    Attributes:
        answer: answer function of the loaded model.
        served: the loaded model.
        swaps: seconds that each replacement of the model took.

    Args:
        load: loads a model folder or hub id and returns its answer function.
    """

    def __init__(self, served: ServedModel, load: Callable[[str], AnswerFunction]) -> None:
        self.swaps: list[float] = []
        self._load = load
        self.answer, self.served = load(served.model), served

    def switch_to(self, served: ServedModel) -> None:
        """Answer with this model from now on; does nothing if it is loaded already."""
        if served.update != self.served.update:
            start = time.perf_counter()
            # If loading fails, the old model stays.
            self.answer, self.served = self._load(served.model), served
            self.swaps.append(time.perf_counter() - start)


def update_folder(output: Path, update: int) -> Path:
    """The folder of an update's run and model."""
    return output / "updates" / str(update)


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

    def verifier_input(self, answer: str) -> object:
        """The argument of a verifier function for an answer: the text, or the picture's pixels."""
        ...

    def tune(self, folder: Path, model: str, seed: int) -> str:
        """Train a model on ``folder/train.jsonl``; an interrupted training gives the same weights when it is repeated.

        Returns:
            The new model's folder.
        """
        ...

    def collapse_metrics(
        self, model: str, first_model: str, prompts: Sequence[Text], answers: Sequence[str]
    ) -> CollapseMetrics:
        """Collapse metrics of a model's answers, with the distance from `first_model`."""
        ...

    def show(
        self, prompts: Sequence[str], first_answers: Sequence[str], last_answers: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        """Samples and figures of the report: answers before the first round and after the last."""
        ...
