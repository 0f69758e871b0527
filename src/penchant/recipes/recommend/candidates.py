"""The titles a question offers: the one that was taken, and others the user had not.

Seeded by the user and the question's number, never by the target: sets that follow from the target alone give it away
to whoever has seen them in training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from penchant.errors import DataError
from penchant.recipes.recommend.histories import Histories, Question

Drawn = Literal["uniform", "popularity"]

Item = TypeVar("Item")


def offer(
    question: Question,
    histories: Histories,
    titles: Mapping[str, str],
    *,
    until: float,
    candidates: int = 20,
    drawn: Drawn = "uniform",
    seed: int = 0,
) -> tuple[str, ...]:
    """Items, the target at a random place.

    Args:
        until: what the user took before this time is not offered as something they did not take.
        candidates: how many items, the target among them; no two of the same title.
        drawn: each item of the catalogue alike, or by its number of interactions in training.

    Raises:
        DataError: the catalogue is too small.
    """
    draw = random.Random(f"{seed}/{question.user}/{question.number}")
    known = {item for item, time in histories.taken[question.user].items() if time < until}
    names = {titles[question.target]}
    others: list[str] = []
    for item in _shuffled(histories, drawn, draw):
        if item in known or item == question.target or titles[item] in names:
            continue
        names.add(titles[item])
        others.append(item)
        if len(others) == candidates - 1:
            break
    else:
        raise DataError(
            f"the catalogue has {len(others)} titles for user '{question.user}' to draw {candidates - 1} others from",
            fix="lower min_count, or offer fewer candidates",
        )
    others.insert(draw.randrange(candidates), question.target)
    return tuple(others)


def _shuffled(histories: Histories, drawn: Drawn, draw: random.Random) -> Sequence[str]:
    """The catalogue in a random order."""
    items = list(histories.items)
    if drawn == "uniform":
        draw.shuffle(items)
        return items
    return in_random_order(items, [histories.counts[item] for item in items], draw)


def in_random_order(items: Sequence[Item], weights: Sequence[float], draw: random.Random) -> list[Item]:
    """Each next item in proportion to its weight, above 0, among those left."""
    # Efraimidis and Spirakis 2006: the largest of u^(1/w) are a weighted sample without replacement.
    keys = [draw.random() ** (1 / weight) for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -keys[i])]
