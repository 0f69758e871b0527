"""Learners that write: causal language models, tuned by ordinary runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from penchant.data.groups import PreferenceGroup
from penchant.data.tokenization import tokenize_prompts
from penchant.engine.distribution import local_device
from penchant.engine.loading import adapter_base, context_length, load_config, load_model, load_tokenizer
from penchant.errors import ConfigError
from penchant.evaluation.generation import Sampling, generate
from penchant.evaluation.judges import fill
from penchant.evaluation.report import Figure, Sample
from penchant.recipes.checking import check_tuning
from penchant.recipes.reading import compute_log_probs
from penchant.recipes.self_improve.config import SelfImproveConfig, UpdateConfig
from penchant.recipes.self_improve.learner import Answer
from penchant.recipes.self_improve.medium import Signs
from penchant.recipes.tuning import TuningConfig, full_model_folder, stage_keys, tune, write_full_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextMedium:
    """Answers are texts; the protocol is `Medium`'s."""

    config: SelfImproveConfig

    amount: ClassVar[str] = "words"
    distinct: ClassVar[str] = "distinct pairs of words"
    distance: ClassVar[str] = "KL, nats"

    def check(self, prompts: Sequence[str]) -> None:
        update, model = self.config.update, self.config.model
        if adapter_base(model) is not None:
            fix = f"merge it first: penchant merge {model} MERGED, then model=MERGED"
            raise ConfigError("model is an adapter folder, and updates put another adapter on it", where=model, fix=fix)
        tuned = TuningConfig(training=update.training, lora=update.lora)
        pair = PreferenceGroup("", ("", ""), preferred=0)
        check_tuning("update", update.objective, tuned, [pair], "update.objective")
        self._check_lengths(prompts)

    def _check_lengths(self, prompts: Sequence[str]) -> None:
        limit, tokenizer = context_length(load_config(self.config.model)), self._tokenizer(self.config.model)
        asked, answer = [*prompts], self.config.sampling.max_new_tokens
        if self.config.memory is not None:
            asked = [fill(self.config.memory, prompt=prompt, answer="", critique="") for prompt in prompts]
        longest = max(map(len, tokenize_prompts(asked, tokenizer, self.config.data.rendering("last"))))
        # Another attempt has the last answer before it; a critique's length is not known.
        answers = answer if self.config.memory is None else 2 * answer
        if limit is not None and longest + answers > limit:
            raise ConfigError(
                f"sampling.max_new_tokens is {answer}: with a prompt of {longest} tokens that is beyond the model's "
                f"{limit}",
                fix="lower sampling.max_new_tokens, or shorten the prompts",
            )

    def _tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        return load_tokenizer(model, chat_template=self.config.data.chat_template)

    def load(self, model: str) -> Answer:
        sampling = self.config.sampling
        writer, tokenizer = load_model(model).to(local_device()), self._tokenizer(model)

        drawn = Sampling(max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p)

        def answer(prompts: Sequence[str], numbers: Sequence[int]) -> list[str]:
            ids = tokenize_prompts(prompts, tokenizer, self.config.data.rendering("last"))
            return [given[0] for given in generate(writer, tokenizer, ids, drawn, numbers=numbers)]

        return answer

    def read(self, answer: str) -> str:
        return answer

    def tune(self, folder: Path, model: str, seed: int) -> str:
        update = self.config.update
        tuned = TuningConfig(training=update.training.model_copy(update={"seed": seed}), lora=update.lora)
        keys, file = stage_keys("update", UpdateConfig), folder / "train.jsonl"
        tune(folder, model, file, None, update.objective, tuned, keys=keys, reading=self.config.data)
        write_full_model(folder, tuned)
        return str(full_model_folder(folder, tuned))

    def signs(self, model: str, first: str, prompts: Sequence[str], answers: Sequence[str]) -> Signs:
        """Words; the share of pairs of neighbouring words that occur once; nats by which answers are likelier now."""
        pairs = [pair for text in answers for pair in zip(text.split(), text.split()[1:], strict=False)]
        asked = zip(prompts, answers, strict=True)
        told = [PreferenceGroup(p, (a,), id=str(n)) for n, (p, a) in enumerate(asked) if a.strip()]
        distance = 0.0
        if model != first and told:
            reading = (told, self.config.token_budget, self.config.data)
            current, initial = (compute_log_probs(source, *reading) for source in (model, first))
            distance = float(np.mean([a.log_probs[0] - b.log_probs[0] for a, b in zip(current, initial, strict=True)]))
        return Signs(
            amount=float(np.mean([len(text.split()) for text in answers])),
            distinct=len(set(pairs)) / len(pairs) if pairs else 0.0,
            distance=distance,
        )

    def show(
        self, prompts: Sequence[str], before: Sequence[str], after: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        return [Sample(*each) for each in zip(prompts, before, after, strict=True)], []
