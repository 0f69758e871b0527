"""The first stage: interactions become questions, and rankings that know no language are measured on them."""

from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup
from penchant.data.interactions import read_interactions, read_titles
from penchant.data.writing import write_groups
from penchant.evaluation.files import write_atomically
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.candidates import offer
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.histories import Histories, Question, build_histories
from penchant.recipes.recommend.measures import Place, ranking_measures

PARTS = ("train", "validation", "test")
TEXTS = "texts.jsonl"
"""Histories of the training part as plain text."""
ABOUT = "test_questions.jsonl"
"""Of each test question its user, the length of its history, and how often its target was taken in training."""


@dataclass(frozen=True)
class Asked:
    """A test question's facts, for breakdowns and for intervals over users."""

    id: str
    user: str
    history: int
    popularity: int


def ask(config: RecommendConfig, folder: Path) -> Mapping[str, Any]:
    """Write every part's questions, each as a group of all titles it offers, the one that was taken preferred."""
    titles = read_titles(config.titles, columns=config.columns)
    interactions = read_interactions(config.interactions, columns=config.columns)
    histories = build_histories(interactions, titles, config.questions.rules)
    parts = _parts(config, histories)
    untils = (parts["validation"][0].time, parts["test"][0].time, math.inf)
    offers = {
        question.id: offer(
            question,
            histories,
            titles,
            until=until,
            candidates=config.questions.candidates,
            drawn=config.questions.drawn,
            seed=config.seed,
        )
        for part, until in zip(PARTS, untils, strict=True)
        for question in parts[part]
    }
    for part in PARTS:
        groups = [_group(question, offers[question.id], titles, config) for question in parts[part]]
        write_anew(groups, folder / f"{part}.jsonl")
    write_anew(_texts(histories, titles, config), folder / TEXTS)
    about = [Asked(q.id, q.user, len(q.history), histories.counts[q.target]) for q in parts["test"]]
    write_atomically(folder / ABOUT, "".join(json.dumps(vars(each)) + "\n" for each in about))
    return {
        "questions": {part: len(parts[part]) for part in PARTS},
        "users": len(histories.taken),
        "items": len(histories.items),
        "dropped": dict(histories.dropped),
        "baselines": _baselines(config, histories, parts, offers),
    }


def read_about(folder: Path) -> list[Asked]:
    """The facts that `ask` wrote of the test questions, in their order."""
    return [Asked(**json.loads(line)) for line in (folder / ABOUT).read_text(encoding="utf-8").splitlines()]


def _parts(config: RecommendConfig, histories: Histories) -> dict[str, tuple[Question, ...]]:
    train = histories.train[-config.questions.train :] if config.questions.train else histories.train
    draw, most = random.Random(config.seed), config.questions.held_out

    def some(questions: tuple[Question, ...]) -> tuple[Question, ...]:
        if most is None or most >= len(questions):
            return questions
        return tuple(questions[i] for i in sorted(draw.sample(range(len(questions)), most)))

    return {"train": train, "validation": some(histories.validation), "test": some(histories.test)}


def _group(
    question: Question, offered: Sequence[str], titles: Mapping[str, str], config: RecommendConfig
) -> PreferenceGroup:
    wording = config.questions.wording
    prompt = wording.prompt([titles[item] for item in question.history], [titles[item] for item in offered])
    answers = tuple(f" {titles[item]}" for item in offered)
    return PreferenceGroup(prompt, answers, preferred=offered.index(question.target), id=question.id)


def _texts(histories: Histories, titles: Mapping[str, str], config: RecommendConfig) -> list[PreferenceGroup]:
    end = histories.validation[0].time
    pieces: dict[str, list[str]] = defaultdict(list)
    for user, times in histories.taken.items():
        before = [titles[item] for item, time in sorted(times.items(), key=lambda pair: pair[1]) if time < end]
        size = 2 * config.questions.max_history
        pieces[user] += [
            config.questions.separator.join(before[start : start + size]) for start in range(0, len(before), size)
        ]
    texts = [text for user in pieces for text in pieces[user]]
    random.Random(config.seed).shuffle(texts)
    return [PreferenceGroup("", (text,), id=str(number)) for number, text in enumerate(texts)]


def _baselines(
    config: RecommendConfig,
    histories: Histories,
    parts: Mapping[str, Sequence[Question]],
    offers: Mapping[str, Sequence[str]],
) -> dict[str, Any]:
    scorers: dict[str, baselines.Scorer] = {
        "chance": baselines.chance,
        "popularity": baselines.popularity(histories),
        "last item": baselines.last_item(histories),
        "item-kNN": baselines.neighbours(histories),
        "place in the list alone": baselines.position(offers, parts["train"]),
        "list alone": baselines.overlap(offers, parts["train"]),
    }
    users = [question.user for question in parts["test"]]

    def places(scorer: baselines.Scorer) -> list[Place]:
        return [Place.of(scorer(q, offers[q.id]), offers[q.id].index(q.target)) for q in parts["test"]]

    return {
        name: {key: value.to_json() for key, value in ranking_measures(places(each), users, config.cutoffs).items()}
        for name, each in scorers.items()
    }


def write_anew(groups: Sequence[PreferenceGroup], file: Path) -> None:
    """Write groups in the place of what a stage cut short has left: the same groups give the same bytes."""
    file.unlink(missing_ok=True)
    write_groups(groups, file)
