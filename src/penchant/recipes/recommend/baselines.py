"""Rankings of candidates without language: what a recommender has to beat."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from penchant.recipes.recommend.histories import Histories, Question

CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS = "chance", "popularity", "last item", "item-kNN"
LIST_POSITION, LIST_OVERLAP = "place in the list alone", "list alone"
NAMES = (CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS, LIST_POSITION, LIST_OVERLAP)
"""The names of the baselines' rows in tables; no method may have one of them."""

Candidates = Sequence[str]
Scorer = Callable[[Question, Candidates], Sequence[float]]


def chance(question: Question, candidates: Candidates) -> Sequence[float]:
    """A score of 0 for every candidate."""
    return [0.0] * len(candidates)


def popularity(histories: Histories) -> Scorer:
    """A scorer by the number of an item's interactions in training."""
    return lambda question, candidates: [float(histories.counts[item]) for item in candidates]


def last_item(histories: Histories) -> Scorer:
    """A first-order Markov chain: how often the item followed the last one in training; ties broken by popularity."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for question in histories.train:
        follows[question.history[-1]][question.target] += 1
    scale = 1 + max(histories.counts.values())

    def score(question: Question, candidates: Candidates) -> Sequence[float]:
        counts_after = follows.get(question.history[-1], Counter())
        return [counts_after[item] + histories.counts[item] / scale for item in candidates]

    return score


def neighbours(histories: Histories) -> Scorer:
    """Item-kNN (Sarwar et al. 2001, section 3.1): the cosine of two items' training users, summed over the history."""
    start = min(question.time for question in histories.validation)
    users: dict[str, set[str]] = defaultdict(set)
    for user, times in histories.times_by_user.items():
        for item, time in times.items():
            if time < start:
                users[item].add(user)

    @cache
    def cosine(a: str, b: str) -> float:
        common_users = len(users[a] & users[b])
        return common_users / math.sqrt(len(users[a]) * len(users[b])) if common_users else 0.0

    return lambda question, candidates: [
        sum(cosine(item, past_item) for past_item in question.history) for item in candidates
    ]


def position(candidate_lists: Mapping[str, Candidates], train: Sequence[Question]) -> Scorer:
    """A scorer by how often a position of the list held the target in training; at chance if lists are shuffled."""
    positions = Counter(candidate_lists[question.id].index(question.target) for question in train)
    return lambda question, candidates: [float(positions[i]) for i in range(len(candidates))]


def overlap(candidate_lists: Mapping[str, Candidates], train: Sequence[Question]) -> Scorer:
    """A scorer by the overlap of the list with the lists of training questions with that target; it ignores histories.

    It is no better than popularity if lists do not depend on their targets.
    """
    questions_by_item: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(train):
        for item in candidate_lists[question.id]:
            questions_by_item[item].append(number)

    def score(question: Question, candidates: Candidates) -> Sequence[float]:
        common_items = Counter(number for item in candidates for number in questions_by_item[item])
        votes: Counter[str] = Counter()
        for number, items in common_items.items():
            votes[train[number].target] = max(votes[train[number].target], items)
        return [float(votes[item]) for item in candidates]

    return score
