"""A text learner: a causal language model that answers, and is exchanged between two batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from penchant.config import SamplingConfig
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.distribution import local_device
from penchant.engine.loading import load_model, load_tokenizer
from penchant.evaluation.generation import Sampling, generate
from penchant.recipes.self_improve.served import Served


class TextLearner:
    """Answers prompts by the model that is served.

    Attributes:
        served: the one that is loaded.
        swaps: seconds that each exchange took.
    """

    def __init__(self, served: Served, sampling: SamplingConfig) -> None:
        self.swaps: list[float] = []
        self._sampling = sampling
        self._load(served)

    def take(self, served: Served) -> None:
        """Answer by this one from now on; nothing happens where it does already."""
        if served.update != self.served.update:
            start = time.perf_counter()
            self._load(served)
            self.swaps.append(time.perf_counter() - start)

    def answer(self, prompts: Sequence[str], seed: int) -> list[str]:
        """One answer to each; the same model, prompts and seed give the same."""
        sampling = Sampling(
            max_new_tokens=self._sampling.max_new_tokens,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            seed=seed,
        )
        ids = tokenize_prompts(prompts, self._tokenizer)
        return [given[0] for given in generate(self._model, self._tokenizer, ids, sampling)]

    def _load(self, served: Served) -> None:
        model = load_model(served.model).to(local_device())
        self._tokenizer = load_tokenizer(served.model)
        # Last: an exchange that fails leaves the old one in place.
        self._model, self.served = model, served


def folder_of(output: Path, update: int) -> Path:
    """Of an update's run and model."""
    return output / "updates" / str(update)
