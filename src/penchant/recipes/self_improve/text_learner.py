"""Learner backend of text: causal language models, trained by ordinary runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from penchant.api import (
    ConfigError,
    Figure,
    PreferenceGroup,
    Sample,
    Sampling,
    Text,
    adapter_base,
    context_length,
    fill,
    generate,
    load_config,
    load_model,
    load_tokenizer,
    local_device,
    tokenize_prompts,
)
from penchant.recipes.reading import compute_log_probs
from penchant.recipes.self_improve.config import LearnerConfig, UpdateConfig
from penchant.recipes.self_improve.learner import AnswerFunction, CollapseMetrics
from penchant.recipes.tuning import (
    StageData,
    TuningConfig,
    check_tuning,
    full_model_folder,
    stage_keys,
    tune,
    write_full_model,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TextLearner:
    """The backend of text, whose answers are the texts themselves."""

    config: LearnerConfig

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
        requests, answer_tokens = [*prompts], self.config.sampling.max_new_tokens
        if self.config.memory is not None:
            requests = [fill(self.config.memory, prompt=prompt, answer="", critique="") for prompt in prompts]
        ids = tokenize_prompts(requests, tokenizer, self.config.data.rendering("last"))
        longest = max(map(len, ids), default=0)
        # A repeated attempt's prompt includes the last answer; the length of the critique is unknown.
        reserved_tokens = answer_tokens if self.config.memory is None else 2 * answer_tokens
        if limit is not None and longest + reserved_tokens > limit:
            raise ConfigError(
                f"sampling.max_new_tokens is {answer_tokens}: with a prompt of {longest} tokens that is beyond the "
                f"model's {limit}",
                fix="lower sampling.max_new_tokens, or shorten the prompts",
            )

    def _tokenizer(self, model: str) -> PreTrainedTokenizerBase:
        return load_tokenizer(model, chat_template=self.config.data.chat_template)

    def load(self, model: str) -> AnswerFunction:
        sampling = self.config.sampling
        loaded_model, tokenizer = load_model(model).to(local_device()), self._tokenizer(model)

        settings = Sampling(
            max_new_tokens=sampling.max_new_tokens, temperature=sampling.temperature, top_p=sampling.top_p
        )

        def answer(prompts: Sequence[Text], seeds: Sequence[int]) -> list[str]:
            ids = tokenize_prompts(prompts, tokenizer, self.config.data.rendering("last"))
            return [samples[0] for samples in generate(loaded_model, tokenizer, ids, settings, numbers=seeds)]

        return answer

    def verifier_input(self, answer: str) -> str:
        return answer

    def tune(self, folder: Path, model: str, seed: int) -> str:
        update = self.config.update
        tuned = TuningConfig(training=update.training.model_copy(update={"seed": seed}), lora=update.lora)
        data = StageData(folder / "train.jsonl", reading=self.config.data)
        tune(folder, model, data, update.objective, tuned, keys=stage_keys("update", UpdateConfig))
        write_full_model(folder, tuned)
        return str(full_model_folder(folder, tuned))

    def collapse_metrics(
        self, model: str, first_model: str, prompts: Sequence[Text], answers: Sequence[str]
    ) -> CollapseMetrics:
        """Mean words; share of distinct pairs of neighbouring words; KL from the first learner, in nats per answer."""
        pairs = [pair for text in answers for pair in zip(text.split(), text.split()[1:], strict=False)]
        prompt_answers = zip(prompts, answers, strict=True)
        groups = [PreferenceGroup(p, (a,), id=str(n)) for n, (p, a) in enumerate(prompt_answers) if a.strip()]
        distance = 0.0
        if model != first_model and groups:
            reading = (groups, self.config.token_budget, self.config.data)
            current, initial = (compute_log_probs(source, *reading) for source in (model, first_model))
            distance = float(np.mean([a.log_probs[0] - b.log_probs[0] for a, b in zip(current, initial, strict=True)]))
        return CollapseMetrics(
            amount=float(np.mean([len(text.split()) for text in answers])),
            distinct=len(set(pairs)) / len(pairs) if pairs else 0.0,
            distance=distance,
        )

    def show(
        self, prompts: Sequence[str], first_answers: Sequence[str], last_answers: Sequence[str]
    ) -> tuple[list[Sample], list[Figure]]:
        return [Sample(*row) for row in zip(prompts, first_answers, last_answers, strict=True)], []
