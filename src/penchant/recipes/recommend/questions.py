"""The first stage: interactions become questions, and rankings that know no language are measured on them."""

from __future__ import annotations

import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penchant.data.groups import PreferenceGroup
from penchant.data.interactions import read_interactions, read_titles
from penchant.data.writing import write_anew
from penchant.evaluation.files import write_atomically
from penchant.evaluation.one_preferred import TargetRank
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.candidates import offer
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.histories import Histories, Question, build_histories
from penchant.recipes.recommend.measures import ranking_measures

PARTS = ("train", "validation", "test")
TEXTS = "texts.jsonl"
"""Histories of the training part as plain text."""
ABOUT = "test_questions.jsonl"
"""Of each test question what `Asked` holds."""
CATALOGUE = "catalogue.json"
"""Every title, with how often it was taken in training."""


@dataclass(frozen=True)
class Asked:
    """A test question's facts, for breakdowns, for intervals over users, and to ask it of the whole catalogue.

    Attributes:
        history: titles, the oldest first.
        known: all titles the user had taken before.
        target: the title taken.
        popularity: how often the target was taken in training.
    """

    id: str
    user: str
    history: list[str]
    known: list[str]
    target: str
    popularity: int


@dataclass(frozen=True)
class Questions:
    """All that is asked.

    Attributes:
        parts: training, validation and test.
        offers: the items that each question offers, by its id.
    """

    titles: Mapping[str, str]
    histories: Histories
    parts: Mapping[str, Sequence[Question]]
    offers: Mapping[str, Sequence[str]]


def draw_questions(config: RecommendConfig) -> Questions:
    """Questions and what each offers, by the configuration's files and seed.

    Raises:
        DataError: the files cannot be read, or there is too little in them.
    """
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
    return Questions(titles, histories, parts, offers)


def ask(config: RecommendConfig, folder: Path) -> Mapping[str, Any]:
    """Write every part's questions, each as a group of all titles it offers, the one that was taken preferred."""
    drawn = draw_questions(config)
    titles, histories, parts = drawn.titles, drawn.histories, drawn.parts
    for part in PARTS:
        open_share = config.questions.open if part == "train" else 0.0
        groups = [_group(q, drawn.offers[q.id], titles, config, open_share) for q in parts[part]]
        write_anew(groups, folder / f"{part}.jsonl")
    write_anew(_texts(histories, titles, config), folder / TEXTS)
    about = [_about(question, histories, titles) for question in parts["test"]]
    write_atomically(folder / ABOUT, "".join(json.dumps(vars(each)) + "\n" for each in about))
    catalogue: Counter[str] = Counter()
    for item in histories.items:
        catalogue[titles[item]] += histories.counts[item]
    write_atomically(folder / CATALOGUE, json.dumps(catalogue, ensure_ascii=False, indent=0) + "\n")
    return {
        "questions": {part: len(parts[part]) for part in PARTS},
        "users": len(histories.taken),
        "items": len(histories.items),
        "dropped": dict(histories.dropped),
        "baselines": _baselines(config, drawn),
    }


def read_about(folder: Path) -> list[Asked]:
    """The facts that `ask` wrote of the test questions, in their order."""
    return [Asked(**json.loads(line)) for line in (folder / ABOUT).read_text(encoding="utf-8").splitlines()]


def read_catalogue(folder: Path) -> dict[str, int]:
    """How often each title of the catalogue was taken in training."""
    counts: dict[str, int] = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
    return counts


def _about(question: Question, histories: Histories, titles: Mapping[str, str]) -> Asked:
    known = [titles[item] for item, time in histories.taken[question.user].items() if time < question.time]
    return Asked(
        id=question.id,
        user=question.user,
        history=[titles[item] for item in question.history],
        known=known,
        target=titles[question.target],
        popularity=histories.counts[question.target],
    )


def _parts(config: RecommendConfig, histories: Histories) -> dict[str, tuple[Question, ...]]:
    train = histories.train[-config.questions.train :] if config.questions.train else histories.train
    draw, most = random.Random(config.seed), config.questions.held_out

    def some(questions: tuple[Question, ...]) -> tuple[Question, ...]:
        if most is None or most >= len(questions):
            return questions
        return tuple(questions[i] for i in sorted(draw.sample(range(len(questions)), most)))

    return {"train": train, "validation": some(histories.validation), "test": some(histories.test)}


def _group(
    question: Question, offered: Sequence[str], titles: Mapping[str, str], config: RecommendConfig, open_share: float
) -> PreferenceGroup:
    wording = config.questions.wording
    history, names = ([titles[item] for item in items] for items in (question.history, offered))
    is_open = random.Random(f"{config.seed}/{question.id}/open").random() < open_share
    prompt = wording.open_prompt(history) if is_open else wording.prompt(history, names)
    return PreferenceGroup(
        prompt, tuple(f" {name}" for name in names), preferred=offered.index(question.target), id=question.id
    )


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


def _baselines(config: RecommendConfig, drawn: Questions) -> dict[str, Any]:
    histories, offers, train, test = drawn.histories, drawn.offers, drawn.parts["train"], drawn.parts["test"]
    scorers: dict[str, baselines.Scorer] = {
        baselines.CHANCE: baselines.chance,
        baselines.POPULARITY: baselines.popularity(histories),
        baselines.LAST_ITEM: baselines.last_item(histories),
        baselines.NEIGHBOURS: baselines.neighbours(histories),
    }
    of_lists: dict[str, baselines.Scorer] = {
        baselines.POSITION: baselines.position(offers, train),
        baselines.OVERLAP: baselines.overlap(offers, train),
    }
    found = {name: measured(each, test, offers, config.cutoffs) for name, each in {**scorers, **of_lists}.items()}
    asked = test[: config.catalogue]
    if asked:
        everything = {question.id: unknown(question, histories) for question in asked}
        for name, each in scorers.items():
            found[name]["catalogue"] = measured(each, asked, everything, config.cutoffs)
    return found


def measured(
    scorer: baselines.Scorer, questions: Sequence[Question], offers: Mapping[str, Sequence[str]], cutoffs: Sequence[int]
) -> dict[str, Any]:
    """How well a ranking of items finds the targets among what the questions offer; as JSON."""
    ranks = [TargetRank.by_scores(scorer(q, offers[q.id]), offers[q.id].index(q.target)) for q in questions]
    measures = ranking_measures(ranks, [question.user for question in questions], cutoffs)
    return {key: value.to_json() for key, value in measures.items()}


def unknown(question: Question, histories: Histories) -> list[str]:
    """What of the catalogue the user had not taken."""
    known = {item for item, time in histories.taken[question.user].items() if time < question.time}
    return [item for item in histories.items if item not in known]
