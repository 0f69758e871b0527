"""Rankings that know no language: what a model must beat, and what must not work if nothing leaks.

Each is fitted on training questions and scores the items a question offers, higher is better.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from penchant.recipes.recommend.histories import Histories, Question

CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS = "chance", "popularity", "last item", "item-kNN"
POSITION, OVERLAP = "place in the list alone", "list alone"
NAMES = (CHANCE, POPULARITY, LAST_ITEM, NEIGHBOURS, POSITION, OVERLAP)
"""Of their rows, which no method may take."""

Offered = Sequence[str]
Scorer = Callable[[Question, Offered], Sequence[float]]


def chance(question: Question, offered: Offered) -> Sequence[float]:
    """All alike."""
    return [0.0] * len(offered)


def popularity(histories: Histories) -> Scorer:
    """By the number of interactions in training."""
    return lambda question, offered: [float(histories.counts[item]) for item in offered]


def last_item(histories: Histories) -> Scorer:
    """Markov chain of the first order: how often the item followed the last one in training; then by popularity."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    for question in histories.train:
        follows[question.history[-1]][question.target] += 1
    most = 1 + max(histories.counts.values())

    def score(question: Question, offered: Offered) -> Sequence[float]:
        after = follows.get(question.history[-1], Counter())
        return [after[item] + histories.counts[item] / most for item in offered]

    return score


def neighbours(histories: Histories) -> Scorer:
    """Item-kNN (Sarwar et al. 2001, section 3.1): the cosine of two items' users in training, summed over a history."""
    start = min(question.time for question in histories.validation)
    users: dict[str, set[str]] = defaultdict(set)
    for user, times in histories.taken.items():
        for item, time in times.items():
            if time < start:
                users[item].add(user)

    @cache
    def cosine(a: str, b: str) -> float:
        both = len(users[a] & users[b])
        return both / math.sqrt(len(users[a]) * len(users[b])) if both else 0.0

    return lambda question, offered: [sum(cosine(item, seen) for seen in question.history) for item in offered]


def position(offers: Mapping[str, Offered], train: Sequence[Question]) -> Scorer:
    """By where training's targets stood in their lists: chance, if lists are well mixed."""
    places = Counter(offers[question.id].index(question.target) for question in train)
    return lambda question, offered: [float(places[i]) for i in range(len(offered))]


def overlap(offers: Mapping[str, Offered], train: Sequence[Question]) -> Scorer:
    """The target of the training questions whose list has most in common with this one; the history is not read.

    No better than popularity, if lists do not follow from their targets.
    """
    lists: dict[str, list[int]] = defaultdict(list)
    for number, question in enumerate(train):
        for item in offers[question.id]:
            lists[item].append(number)

    def score(question: Question, offered: Offered) -> Sequence[float]:
        common = Counter(number for item in offered for number in lists[item])
        votes: Counter[str] = Counter()
        for number, items in common.items():
            votes[train[number].target] = max(votes[train[number].target], items)
        return [float(votes[item]) for item in offered]

    return score
