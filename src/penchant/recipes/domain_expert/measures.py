"""The metrics of a model: perplexity of the domain's text, answers to instructions and tasks, preferences."""

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
    """A plain text itself, or the content of the last message, if a role is given of that role; "" if there is none.

    Answers are plain text, and a server asks its router about the user's last message: both are without a role.
    """
    if isinstance(text, str):
        return text
    return next((content_of(message) for message in reversed(text) if role in (None, message["role"])), "")


@dataclass(frozen=True)
class PromptSet:
    """Prompts with their reference answers."""

    prompts: tuple[Text, ...]
    references: tuple[str, ...]

    @classmethod
    def from_file(cls, file: Path, limit: int) -> PromptSet:
        """The first `limit` different prompts of a file of groups; the reference of a pair is the preferred answer."""
        groups_by_prompt: dict[str, PreferenceGroup] = {}
        for group in read_groups(file).groups:
            groups_by_prompt.setdefault(as_text(group.prompt), group)
        groups = list(groups_by_prompt.values())[:limit]
        references = [group.candidates[group.pairs[0][0] if group.pairs else 0] for group in groups]
        return cls(tuple(group.prompt for group in groups), tuple(content(text).strip() for text in references))

    def answer(self, model: str, config: DomainExpertConfig) -> list[str]:
        """The model's greedy answers."""
        sampling = Sampling(temperature=0.0, max_new_tokens=config.answer_tokens)
        return [samples[0].strip() for samples in generate_answers(model, self.prompts, sampling, config.data)]

    def f1(self, answers: Sequence[str]) -> list[float]:
        """The token F1 of every answer with its reference."""
        return [token_f1(answer, reference) for answer, reference in zip(answers, self.references, strict=True)]

    def metrics(self, name: str, answers: Sequence[str], bert_score: BertScore | None = None) -> dict[str, Estimate]:
        """Exact match, F1, ROUGE-L and, with an encoder, BERTScore; means with intervals over prompts.

        Args:
            name: the prefix of the metrics' names.
        """
        pairs = list(zip(answers, self.references, strict=True))
        values_by_metric = {
            f"{name}_exact": [exact_match(*pair) for pair in pairs],
            f"{name}_f1": self.f1(answers),
            f"{name}_rouge_l": [rouge_l(*pair) for pair in pairs],
        }
        if bert_score is not None:
            values_by_metric[f"{name}_bert_score"] = bert_score(answers, self.references)
        return {key: bootstrap_mean(values, range(len(values))) for key, values in values_by_metric.items()}


def perplexity(model: str, file: Path, config: DomainExpertConfig) -> Estimate:
    """The perplexity per token of a file's texts, end tokens included, with an interval over texts."""
    scored = compute_log_probs(model, read_groups(file).groups, config.token_budget, config.data)
    tokens = [group.tokens[0] for group in scored]
    means = [group.log_probs[0] / count for group, count in zip(scored, tokens, strict=True)]
    # Every token has the same weight, so a text's mean is repeated for all of its tokens.
    loss = resampled_mean(-np.repeat(means, tokens), np.repeat(np.arange(len(tokens)), tokens))
    return Estimate(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), len(tokens))


def preference_accuracy(model: str, file: Path, config: DomainExpertConfig) -> Estimate:
    """The share of pairs whose preferred answer has the higher log-prob per token, with an interval over prompts."""
    values: list[float] = []
    prompts: list[str] = []
    for scored in compute_log_probs(model, read_groups(file).groups, config.token_budget, config.data):
        right_pairs = pair_accuracies(scored)
        values += right_pairs
        prompts += [as_text(scored.group.prompt)] * len(right_pairs)
    numbers = {prompt: n for n, prompt in enumerate(dict.fromkeys(prompts))}
    return bootstrap_mean(values, [numbers[prompt] for prompt in prompts])
