"""The learner that answers, which can be replaced between two batches."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from penchant.recipes.self_improve.served import ServedModel

AnswerFunction = Callable[[Sequence[str], Sequence[int]], list[str]]
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
