"""The candidates of a question: the target, and titles that the user had not taken.

The seed comes from the user and the question's number and never from the target: candidates that depend on the target
alone would reveal it to a model that saw the same candidates in training.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from penchant.errors import DataError
from penchant.recipes.recommend.histories import Histories, Question

NegativeSampling = Literal["uniform", "popularity"]

Item = TypeVar("Item")


def draw_candidates(
    question: Question,
    histories: Histories,
    titles: Mapping[str, str],
    *,
    until: float,
    count: int = 20,
    sampling: NegativeSampling = "uniform",
    seed: int = 0,
) -> tuple[str, ...]:
    """The question's candidates with the target at a random position.

    Args:
        until: items that the user took before this time are not drawn as negatives.
        count: the number of candidates including the target; no two have the same title.
        sampling: negatives are drawn uniformly, or in proportion to an item's number of interactions in training.

    Raises:
        DataError: the catalogue is too small.
    """
    draw = random.Random(f"{seed}/{question.user}/{question.number}")
    items_of_user = {item for item, time in histories.times_by_user[question.user].items() if time < until}
    names = {titles[question.target]}
    items: list[str] = []
    for item in _shuffled(histories, sampling, draw):
        if item in items_of_user or item == question.target or titles[item] in names:
            continue
        names.add(titles[item])
        items.append(item)
        if len(items) == count - 1:
            break
    else:
        raise DataError(
            f"the catalogue has {len(items)} titles for user '{question.user}' to draw {count - 1} others from",
            fix="lower min_count, or offer fewer candidates",
        )
    items.insert(draw.randrange(count), question.target)
    return tuple(items)


def _shuffled(histories: Histories, sampling: NegativeSampling, draw: random.Random) -> Sequence[str]:
    """The catalogue in a random order, weighted by popularity if the sampling is."""
    items = list(histories.items)
    if sampling == "uniform":
        draw.shuffle(items)
        return items
    return in_random_order(items, [histories.counts[item] for item in items], draw)


def in_random_order(items: Sequence[Item], weights: Sequence[float], draw: random.Random) -> list[Item]:
    """The items in a random order: every next one is drawn in proportion to its weight (above 0) among the rest."""
    # Efraimidis and Spirakis 2006: the items with the largest u^(1/w) are a weighted sample without replacement.
    keys = [draw.random() ** (1 / weight) for weight in weights]
    return [items[i] for i in sorted(range(len(items)), key=lambda i: -keys[i])]
