"""The router: its prompt, the structured expert's training groups for it, and its accuracy."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from penchant.data.groups import PreferenceGroup
from penchant.data.reading import read_groups
from penchant.evaluation.files import write_atomically
from penchant.evaluation.statistics import proportion
from penchant.recipes.domain_expert.config import DomainExpertConfig
from penchant.recipes.domain_expert.measures import PromptSet, content
from penchant.recipes.reading import compute_log_probs
from penchant.recipes.stages import StageResult
from penchant.serving.router import Router

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
