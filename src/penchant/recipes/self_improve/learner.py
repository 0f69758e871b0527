"""The learner that answers now, exchanged between two batches."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from penchant.recipes.self_improve.served import Served

Answer = Callable[[Sequence[str], Sequence[int]], list[str]]
"""One answer to each prompt, a text or a picture's name, by a number of its own that decides the draws: the same model,
prompt and number give the same, whatever is beside it."""


def number_of(*told: int | str) -> int:
    """A number below 2 ** 63 for an answer's draws, from what tells it from all others."""
    return int.from_bytes(hashlib.blake2b(json.dumps(told).encode(), digest_size=8).digest()) >> 1


class Learner:
    """Answers prompts by the model that is served.

    Attributes:
        served: the one that is loaded.
        swaps: seconds that each exchange took.

    Args:
        load: makes a model's folder or hub id answer.
    """

    def __init__(self, served: Served, load: Callable[[str], Answer]) -> None:
        self.swaps: list[float] = []
        self._load = load
        self.answer, self.served = load(served.model), served

    def take(self, served: Served) -> None:
        """Answer by this one from now on; nothing happens where it does already."""
        if served.update != self.served.update:
            start = time.perf_counter()
            # An exchange that fails leaves the old one in place.
            self.answer, self.served = self._load(served.model), served
            self.swaps.append(time.perf_counter() - start)


def folder_of(output: Path, update: int) -> Path:
    """Of an update's run and model."""
    return output / "updates" / str(update)
