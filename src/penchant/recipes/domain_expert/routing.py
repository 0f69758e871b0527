"""The router: its prompt, training groups, threshold and accuracy; and the metrics of a model on every domain set."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, zip_longest
from pathlib import Path

import numpy as np

from penchant.api import (
    BertScore,
    Decision,
    Estimate,
    PreferenceGroup,
    Router,
    RubricJudge,
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
class AnswerMeasures:
    """What measures answers besides their words.

    Attributes:
        bert_score: encoder; None without one.
        rubric: judge that rates from 1 to 5; None without one.
    """

    bert_score: BertScore | None = None
    rubric: RubricJudge | None = None

    @classmethod
    def open(cls, config: DomainExpertConfig) -> AnswerMeasures:
        """The measures of a configuration, with the encoder loaded."""
        return cls(
            config.bert_score.open() if config.bert_score else None,
            RubricJudge(config.rating) if config.rating else None,
        )


WORDS_ONLY = AnswerMeasures()


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

    def values(self, name: str, answers: Sequence[str], measures: AnswerMeasures = WORDS_ONLY) -> MetricValues:
        """Exact match, F1, ROUGE-L and, where measured, BERTScore and rating of every answer.

        Args:
            name: the prefix of the metrics' names.
        """
        pairs = list(zip(answers, self.references, strict=True))
        values = {
            f"{name}_exact": [exact_match(*pair) for pair in pairs],
            f"{name}_f1": self.f1(answers),
            f"{name}_rouge_l": [rouge_l(*pair) for pair in pairs],
        }
        if measures.bert_score is not None:
            values[f"{name}_bert_score"] = measures.bert_score(answers, self.references)
        if measures.rubric is not None:
            ratings = measures.rubric(self.prompts, answers, self.references)
            values[f"{name}_rating"] = [math.nan if rating is None else rating for rating in ratings]
        return values


MetricValues = dict[str, list[float]]
"""The value of every prompt by metric; NaN where there is none."""


def mean_values(values_by_metric: MetricValues) -> dict[str, Estimate]:
    """The mean of every metric with an interval over prompts, those without a value left out."""
    present = {key: [value for value in values if not math.isnan(value)] for key, values in values_by_metric.items()}
    return {key: bootstrap_mean(values, range(len(values))) for key, values in present.items()}


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


USER = "user"
"""The role whose last message a server asks the router about."""


def routing_groups(config: DomainExpertConfig, data: Path) -> list[PreferenceGroup]:
    """Groups of the router's prompt about training requests with the right label as the answer."""
    router, remaining = _draw_examples(config, data)
    labels = list(router.names)
    return [
        PreferenceGroup(question.prompt, (question.candidates[labels.index(expert)],), id=f"route {expert} {n}")
        for expert, requests in remaining.items()
        for n, question in enumerate(map(router.question, requests[: config.router.taught]))
    ]


def route(config: DomainExpertConfig, folder: Path) -> StageResult:
    """Write the router and its decisions on test requests; the result holds its accuracy and confusion matrix.

    A threshold that the settings leave open is chosen on the validation requests, so that the accuracy on the test
    requests is that of the router as it is served.
    """
    data, settings = folder.parent / "data", config.router
    model = str(folder.parent / settings.asks / "run")

    def log_probs(groups: Sequence[PreferenceGroup]) -> list[tuple[float, ...]]:
        return [scored.log_probs for scored in compute_log_probs(model, groups, config.token_budget, config.data)]

    router = _draw_examples(config, data)[0].calibrated(log_probs)
    if settings.normalize == "mean":
        (labels,) = compute_log_probs(model, [router.question("")], config.token_budget, config.data)
        router = replace(router, lengths=dict(zip(router.names, labels.tokens, strict=True)))

    def decide(router: Router, requests: Sequence[tuple[str, str]]) -> list[Decision]:
        return [router.decide(values) for values in log_probs([router.question(text) for text, _ in requests])]

    if settings.threshold is None:
        requests = _read_requests(config, data, "validation")
        chosen = choose_threshold(decide(router, requests), [expert for _, expert in requests], router.fallback)
        router = replace(router, threshold=chosen)
    router.save(folder)
    requests = _read_requests(config, data, "test")
    decisions = decide(router, requests)
    rows = [
        {"request": text, "is": expert, **vars(decision)}
        for (text, expert), decision in zip(requests, decisions, strict=True)
    ]
    write_atomically(folder / "decisions.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    confusion = {expert: dict.fromkeys(router.names, 0) for expert in router.names}
    for row in rows:
        confusion[row["is"]][row["likeliest"]] += 1
    right = {key: sum(row["is"] == row[key] for row in rows) for key in ("likeliest", "expert")}
    return {
        "accuracy": proportion(right["likeliest"], len(rows)).to_json(),
        "accuracy_with_fallback": proportion(right["expert"], len(rows)).to_json(),
        "threshold": router.threshold,
        "fell_back": sum(decision.confidence < router.threshold for decision in decisions),
        "confusion": confusion,
    }


def choose_threshold(decisions: Sequence[Decision], experts: Sequence[str], fallback: str) -> float:
    """The threshold by which most requests reach the right expert; of several the lowest, by which fewest fall back.

    Args:
        decisions: decisions on requests, whose likeliest expert and confidence count.
        experts: the right expert of every request.
    """
    confidences = sorted({decision.confidence for decision in decisions})
    thresholds = [0.0, *((low + high) / 2 for low, high in pairwise(confidences)), (confidences[-1] + 1) / 2]

    def right_count(threshold: float) -> int:
        chosen = (decision.likeliest if decision.confidence >= threshold else fallback for decision in decisions)
        return sum(expert == right for expert, right in zip(chosen, experts, strict=True))

    return max(thresholds, key=right_count)


def _read_requests(config: DomainExpertConfig, data: Path, part: str) -> list[tuple[str, str]]:
    """Every request of a part with its right expert."""
    return [
        (content(prompt, USER), expert)
        for expert, sets in config.sets_by_expert.items()
        for name in sets
        for prompt in PromptSet.from_file(data / f"{name}_{part}.jsonl", config.answers).prompts
    ]


def _draw_examples(config: DomainExpertConfig, data: Path) -> tuple[Router, dict[str, list[str]]]:
    """The router with random examples, and by expert its other training requests in random order.

    An expert's sets take turns, so that each of them has examples.
    """
    settings, draw = config.router, random.Random(config.seed)
    examples, remaining = [], {}
    for expert, sets in config.sets_by_expert.items():
        prompts_by_set = []
        for name in sets:
            groups = read_groups(data / f"{name}_train.jsonl").groups
            prompts_by_set.append(list(dict.fromkeys(content(group.prompt, USER) for group in groups)))
            draw.shuffle(prompts_by_set[-1])
        prompts = [prompt for turn in zip_longest(*prompts_by_set) for prompt in turn if prompt is not None]
        examples += [(text, expert) for text in prompts[: settings.shots]]
        remaining[expert] = prompts[settings.shots :]
    draw.shuffle(examples)
    router = Router(
        settings.names,
        settings.asks,
        tuple(examples),
        settings.fallback,
        settings.threshold or 0.0,
        chat=config.data.as_chat == "true",
    )
    return router, remaining
