"""The first stage: questions of interactions or of a file, and the baselines' hit ratio, NDCG and MRR on them."""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penchant.api import Estimate, PreferenceGroup, TargetRank, bootstrap_mean, write_anew, write_atomically
from penchant.recipes.recommend import baselines
from penchant.recipes.recommend.config import RecommendConfig
from penchant.recipes.recommend.histories import Histories, Question, build_histories, read_interactions, read_titles
from penchant.recipes.recommend.prompts import draw_candidates
from penchant.recipes.recommend.published import PARTS, read_published


def ranking_metrics(ranks: Sequence[TargetRank], users: Sequence[str], cutoffs: Sequence[int]) -> dict[str, Estimate]:
    """Hit ratio, NDCG and MRR: means over questions with intervals over users.

    Args:
        ranks: the target's rank for every question.
        users: the user of every question.
        cutoffs: the k of hit ratio and NDCG.
    """
    values = {f"hit_ratio@{k}": [rank.hit(k) for rank in ranks] for k in cutoffs}
    values |= {f"ndcg@{k}": [rank.ndcg(k) for rank in ranks] for k in cutoffs if k > 1}
    values["mrr"] = [rank.reciprocal() for rank in ranks]
    return {name: mean_over_users(values_of_metric, users) for name, values_of_metric in values.items()}


def mean_over_users(values: Sequence[float], users: Sequence[str]) -> Estimate:
    """The mean over questions with an interval over users."""
    numbers: Mapping[str, int] = {user: i for i, user in enumerate(dict.fromkeys(users))}
    return bootstrap_mean(np.array(values, dtype=np.float64), np.array([numbers[user] for user in users]))


def named_titles(answer: str, titles: Sequence[str]) -> tuple[int, ...]:
    """The indices of the titles that an answer names on word boundaries; of nested titles only the longest counts.

    An answer is valid if it names exactly one title.
    """
    remaining, indices = answer, []
    for index in sorted(range(len(titles)), key=lambda i: -len(titles[i])):
        pattern = rf"(?<!\w){re.escape(titles[index].strip())}(?!\w)"
        remaining, times = re.subn(pattern, "\0", remaining, flags=re.IGNORECASE)
        if times:
            indices.append(index)
    return tuple(sorted(indices))


def answer_metrics(
    answers: Sequence[str], candidates: Sequence[Sequence[str]], targets: Sequence[int], users: Sequence[str]
) -> dict[str, Estimate]:
    """Hit ratio at 1 of greedy answers (valid and right ones, over all) and the share of valid ones, as in the paper.

    Args:
        answers: the answer to every question.
        candidates: the titles that every question lists.
        targets: the index of every question's target among its titles.
        users: the user of every question.
    """
    choices = [named_titles(answer, titles) for answer, titles in zip(answers, candidates, strict=True)]
    hits = [float(choice == (target,)) for choice, target in zip(choices, targets, strict=True)]
    valid = [float(len(choice) == 1) for choice in choices]
    return {"said_hit_ratio@1": mean_over_users(hits, users), "valid_ratio": mean_over_users(valid, users)}


TEXTS = "texts.jsonl"
"""The file of the training part's histories as plain text."""
FACTS = "test_questions.jsonl"
"""The file of the test questions' `QuestionFacts`."""
CATALOGUE = "catalogue.json"
"""The file of every title's number of interactions in training."""


@dataclass(frozen=True)
class QuestionFacts:
    """Facts of a test question, for breakdowns, intervals over users and rankings of the whole catalogue.

    Attributes:
        history: the history's titles, the oldest first.
        known: all titles that the user had taken before.
        target: the target's title.
        popularity: the number of the target's interactions in training.
    """

    id: str
    user: str
    history: list[str]
    known: list[str]
    target: str
    popularity: int


@dataclass(frozen=True)
class QuestionSet:
    """All questions with their candidates.

    Attributes:
        titles: the title by item.
        parts: the questions of training, validation and test.
        candidate_lists: the candidates by the question's id.
    """

    titles: Mapping[str, str]
    histories: Histories
    parts: Mapping[str, Sequence[Question]]
    candidate_lists: Mapping[str, Sequence[str]]


def draw_questions(config: RecommendConfig) -> QuestionSet:
    """The questions and their candidates, from the configuration's files and seed.

    Raises:
        DataError: the files cannot be read, or hold too few interactions or questions.
    """
    if config.questions.file is not None:
        negatives = max((method.negatives for method in config.methods), default=1)
        published = read_published(config.questions.file, config.questions.rules, negatives, config.columns)
        parts = _parts(config, published.histories)
        titles = {title: title for title in published.histories.items}
        return QuestionSet(titles, published.histories, parts, published.candidate_lists)
    assert config.titles is not None
    assert config.interactions is not None
    titles = read_titles(config.titles, columns=config.columns)
    interactions = read_interactions(config.interactions, columns=config.columns)
    histories = build_histories(interactions, titles, config.questions.rules)
    parts = _parts(config, histories)
    untils = (parts["validation"][0].time, parts["test"][0].time, math.inf)
    candidate_lists = {
        question.id: draw_candidates(
            question,
            histories,
            titles,
            until=until,
            count=config.questions.candidates,
            sampling=config.questions.drawn,
            seed=config.seed,
        )
        for part, until in zip(PARTS, untils, strict=True)
        for question in parts[part]
    }
    return QuestionSet(titles, histories, parts, candidate_lists)


def write_questions(config: RecommendConfig, folder: Path) -> Mapping[str, Any]:
    """Write every part's questions as groups of all candidates with the target preferred; the result counts them."""
    question_set = draw_questions(config)
    titles, histories, parts = question_set.titles, question_set.histories, question_set.parts
    for part in PARTS:
        open_share = config.questions.open if part == "train" else 0.0
        groups = [_group(q, question_set.candidate_lists[q.id], titles, config, open_share) for q in parts[part]]
        write_anew(groups, folder / f"{part}.jsonl")
    write_anew(_texts(histories, titles, config), folder / TEXTS)
    facts = [_facts(question, histories, titles) for question in parts["test"]]
    write_atomically(folder / FACTS, "".join(json.dumps(vars(question_facts)) + "\n" for question_facts in facts))
    catalogue: Counter[str] = Counter()
    for item in histories.items:
        catalogue[titles[item]] += histories.counts[item]
    write_atomically(folder / CATALOGUE, json.dumps(catalogue, ensure_ascii=False, indent=0) + "\n")
    return {
        "questions": {part: len(parts[part]) for part in PARTS},
        "users": len(histories.times_by_user),
        "items": len(histories.items),
        "dropped": dict(histories.dropped),
        "baselines": _baselines(config, question_set),
    }


def read_facts(folder: Path) -> list[QuestionFacts]:
    """The facts of the test questions that `write_questions` wrote, in their order."""
    return [QuestionFacts(**json.loads(line)) for line in (folder / FACTS).read_text(encoding="utf-8").splitlines()]


def read_catalogue(folder: Path) -> dict[str, int]:
    """The number of interactions in training by title of the catalogue."""
    counts: dict[str, int] = json.loads((folder / CATALOGUE).read_text(encoding="utf-8"))
    return counts


def _facts(question: Question, histories: Histories, titles: Mapping[str, str]) -> QuestionFacts:
    titles_of_user = [
        titles[item] for item, time in histories.times_by_user[question.user].items() if time < question.time
    ]
    return QuestionFacts(
        id=question.id,
        user=question.user,
        history=[titles[item] for item in question.history],
        known=titles_of_user,
        target=titles[question.target],
        popularity=histories.counts[question.target],
    )


def _parts(config: RecommendConfig, histories: Histories) -> dict[str, tuple[Question, ...]]:
    train = histories.train[-config.questions.train :] if config.questions.train else histories.train
    draw, limit = random.Random(config.seed), config.questions.held_out

    def sample(questions: tuple[Question, ...]) -> tuple[Question, ...]:
        if limit is None or limit >= len(questions):
            return questions
        return tuple(questions[i] for i in sorted(draw.sample(range(len(questions)), limit)))

    return {"train": train, "validation": sample(histories.validation), "test": sample(histories.test)}


def _group(
    question: Question, candidates: Sequence[str], titles: Mapping[str, str], config: RecommendConfig, open_share: float
) -> PreferenceGroup:
    wording = config.questions.wording
    history, names = ([titles[item] for item in items] for items in (question.history, candidates))
    is_open = random.Random(f"{config.seed}/{question.id}/open").random() < open_share
    prompt = wording.open_prompt(history) if is_open else wording.prompt(history, names)
    return PreferenceGroup(
        prompt, tuple(f" {name}" for name in names), preferred=candidates.index(question.target), id=question.id
    )


def _texts(histories: Histories, titles: Mapping[str, str], config: RecommendConfig) -> list[PreferenceGroup]:
    end = histories.validation[0].time
    pieces: dict[str, list[str]] = defaultdict(list)
    for user, times in histories.times_by_user.items():
        titles_before = [titles[item] for item, time in sorted(times.items(), key=lambda pair: pair[1]) if time < end]
        size = 2 * config.questions.max_history
        pieces[user] += [
            config.questions.separator.join(titles_before[start : start + size])
            for start in range(0, len(titles_before), size)
        ]
    texts = [text for user in pieces for text in pieces[user]]
    random.Random(config.seed).shuffle(texts)
    return [PreferenceGroup("", (text,), id=str(number)) for number, text in enumerate(texts)]


def _baselines(config: RecommendConfig, question_set: QuestionSet) -> dict[str, Any]:
    histories, candidate_lists = question_set.histories, question_set.candidate_lists
    train, test = question_set.parts["train"], question_set.parts["test"]
    scorers: dict[str, baselines.Scorer] = {
        baselines.CHANCE: baselines.chance,
        baselines.POPULARITY: baselines.popularity(histories),
        baselines.LAST_ITEM: baselines.last_item(histories),
        baselines.NEIGHBOURS: baselines.neighbours(histories),
    }
    list_scorers: dict[str, baselines.Scorer] = {
        baselines.LIST_POSITION: baselines.position(candidate_lists, train),
        baselines.LIST_OVERLAP: baselines.overlap(candidate_lists, train),
    }
    results = {
        name: baseline_metrics(scorer, test, candidate_lists, config.cutoffs)
        for name, scorer in {**scorers, **list_scorers}.items()
    }
    catalogue_questions = test[: config.catalogue]
    if catalogue_questions:
        catalogue_lists = {question.id: items_not_taken(question, histories) for question in catalogue_questions}
        for name, scorer in scorers.items():
            results[name]["catalogue"] = baseline_metrics(scorer, catalogue_questions, catalogue_lists, config.cutoffs)
    return results


def baseline_metrics(
    scorer: baselines.Scorer,
    questions: Sequence[Question],
    candidate_lists: Mapping[str, Sequence[str]],
    cutoffs: Sequence[int],
) -> dict[str, Any]:
    """The ranking metrics of a scorer on the questions with these candidates, as JSON."""
    ranks = [
        TargetRank.by_scores(scorer(q, candidate_lists[q.id]), candidate_lists[q.id].index(q.target)) for q in questions
    ]
    metrics = ranking_metrics(ranks, [question.user for question in questions], cutoffs)
    return {key: value.to_json() for key, value in metrics.items()}


def items_not_taken(question: Question, histories: Histories) -> list[str]:
    """The items of the catalogue that the user had not taken before the question."""
    items_of_user = {item for item, time in histories.times_by_user[question.user].items() if time < question.time}
    return [item for item in histories.items if item not in items_of_user]
