"""What a model is measured by: perplexity of the field's text, answers to instructions and tasks, preferences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from penchant.data.groups import PreferenceGroup, Text, as_text
from penchant.data.messages import content_of
from penchant.data.reading import read_groups
from penchant.evaluation.generation import Sampling
from penchant.evaluation.references import exact_match, rouge_l, token_f1
from penchant.evaluation.similarity import BertScore
from penchant.evaluation.statistics import Estimate, bootstrap_mean, resampled_mean
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.reading import compute_log_probs, generate_answers, pair_accuracies


def content(text: Text, role: str | None = None) -> str:
    """A text itself; of messages what the last one says, or the last of a role, nothing where there is none.

    Answers come as bare words, and a server asks its router with the user's last words: neither names a role.
    """
    if isinstance(text, str):
        return text
    return next((content_of(message) for message in reversed(text) if role in (None, message["role"])), "")


@dataclass(frozen=True)
class Asked:
    """Prompts, each with the answer that is right."""

    prompts: tuple[Text, ...]
    references: tuple[str, ...]

    @classmethod
    def of(cls, file: Path, most: int) -> Asked:
        """The first prompts of a file of groups, each once; of pairs the better answer is right."""
        first: dict[str, PreferenceGroup] = {}
        for group in read_groups(file).groups:
            first.setdefault(as_text(group.prompt), group)
        groups = list(first.values())[:most]
        right = [group.candidates[group.pairs[0][0] if group.pairs else 0] for group in groups]
        return cls(tuple(group.prompt for group in groups), tuple(content(text).strip() for text in right))

    def answered(self, model: str, config: DomainExpertConfig) -> list[str]:
        """The model's likeliest words."""
        sampling = Sampling(temperature=0.0, max_new_tokens=config.answer_tokens)
        return [samples[0].strip() for samples in generate_answers(model, self.prompts, sampling, config.data)]

    def f1(self, answers: Sequence[str]) -> list[float]:
        """Of each answer, its words' F1."""
        return [token_f1(said, right) for said, right in zip(answers, self.references, strict=True)]

    def measures(self, name: str, answers: Sequence[str], alike: BertScore | None = None) -> dict[str, Estimate]:
        """Exact matches, F1, ROUGE-L and perhaps BERTScore, with intervals over prompts."""
        pairs = list(zip(answers, self.references, strict=True))
        found = {
            f"{name}_exact": [exact_match(*pair) for pair in pairs],
            f"{name}_f1": self.f1(answers),
            f"{name}_rouge_l": [rouge_l(*pair) for pair in pairs],
        }
        if alike is not None:
            found[f"{name}_bert_score"] = alike(answers, self.references)
        return {key: bootstrap_mean(values, range(len(values))) for key, values in found.items()}


def perplexity(model: str, file: Path, config: DomainExpertConfig) -> Estimate:
    """Of texts, by token, their ends included; the interval is over texts."""
    scored = compute_log_probs(model, read_groups(file).groups, config.token_budget, config.data)
    tokens = [group.tokens[0] for group in scored]
    means = [group.log_probs[0] / n for group, n in zip(scored, tokens, strict=True)]
    # Each token counts once: a text's mean stands for group of its tokens.
    loss = resampled_mean(-np.repeat(means, tokens), np.repeat(np.arange(len(tokens)), tokens))
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), len(tokens))


def preference_accuracy(model: str, file: Path, config: DomainExpertConfig) -> Estimate:
    """How often the better answer has the higher log-prob per token; the interval is over prompts."""
    values: list[float] = []
    prompts: list[str] = []
    for scored in compute_log_probs(model, read_groups(file).groups, config.token_budget, config.data):
        right = pair_accuracies(scored)
        values += right
        prompts += [as_text(scored.group.prompt)] * len(right)
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    return bootstrap_mean(values, [numbers[prompt] for prompt in prompts])
