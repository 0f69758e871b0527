"""The router (its prompt, training groups and accuracy), and the metrics of a model on every domain set."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from penchant.api import (
    BertScore,
    Estimate,
    PreferenceGroup,
    Router,
    Sampling,
    Text,
    as_text,
    bootstrap_mean,
    content_of,
    exact_match,
    proportion,
    read_groups,
    resampled_mean,
    rouge_l,
    token_f1,
    write_atomically,
)
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.reading import compute_log_probs, generate_answers, pair_accuracies
from penchant.recipes.stages import StageResult


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


EXPERTS = {"conversation": "preferences", "structured": "tasks"}
"""The set of an expert's requests, by expert."""

USER = "user"
"""The role whose last message a server asks the router about."""


def routing_groups(config: DomainExpertConfig, data: Path) -> list[PreferenceGroup]:
    """Groups of the router's prompt about training requests with the right label as the answer."""
    router, remaining = _draw_examples(config, data)
    return [
        PreferenceGroup(router.question(text).prompt, (f" {router.names[expert]}",), id=f"route {expert} {n}")
        for expert, requests in remaining.items()
        for n, text in enumerate(requests[: config.router.taught])
    ]


def route(config: DomainExpertConfig, folder: Path) -> StageResult:
    """Write the router and its decisions on test requests; the result holds its accuracy and confusion matrix."""
    data, settings = folder.parent / "data", config.router
    model = str(folder.parent / settings.asks / "run")

    def log_probs(groups: Sequence[PreferenceGroup]) -> list[tuple[float, ...]]:
        return [scored.log_probs for scored in compute_log_probs(model, groups, config.token_budget, config.data)]

    router = _draw_examples(config, data)[0].calibrated(log_probs)
    if settings.normalize == "mean":
        (labels,) = compute_log_probs(model, [router.question("")], config.token_budget, config.data)
        router = replace(router, lengths=dict(zip(router.names, labels.tokens, strict=True)))
    router.save(folder)
    requests = [
        (content(prompt, USER), expert)
        for expert, name in EXPERTS.items()
        for prompt in PromptSet.from_file(data / f"{name}_test.jsonl", config.answers).prompts
    ]
    log_probs_of_requests = log_probs([router.question(text) for text, _ in requests])
    decisions = [router.decide(values) for values in log_probs_of_requests]
    rows = [
        {"request": text, "is": expert, **vars(decision)}
        for (text, expert), decision in zip(requests, decisions, strict=True)
    ]
    write_atomically(folder / "decisions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    confusion = {expert: dict.fromkeys(EXPERTS, 0) for expert in EXPERTS}
    for row in rows:
        confusion[row["is"]][row["likeliest"]] += 1
    right = {key: sum(row["is"] == row[key] for row in rows) for key in ("likeliest", "expert")}
    return {
        "accuracy": proportion(right["likeliest"], len(rows)).to_json(),
        "accuracy_with_fallback": proportion(right["expert"], len(rows)).to_json(),
        "fell_back": sum(decision.confidence < settings.threshold for decision in decisions),
        "confusion": confusion,
    }


def _draw_examples(config: DomainExpertConfig, data: Path) -> tuple[Router, dict[str, list[str]]]:
    """The router with random examples, and by expert its other training requests in random order."""
    settings, draw = config.router, random.Random(config.seed)
    examples, remaining = [], {}
    for expert, name in EXPERTS.items():
        groups = read_groups(data / f"{name}_train.jsonl").groups
        prompts = list(dict.fromkeys(content(group.prompt, USER) for group in groups))
        draw.shuffle(prompts)
        examples += [(text, expert) for text in prompts[: settings.shots]]
        remaining[expert] = prompts[settings.shots :]
    draw.shuffle(examples)
    return Router(settings.names, settings.asks, tuple(examples), settings.fallback, settings.threshold), remaining
