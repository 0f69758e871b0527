"""Interactions of users who choose at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from penchant.recipes.recommend.histories import Interaction


@pytest.fixture(scope="session")
def titles() -> dict[str, str]:
    return {f"i{n}": f"The {n}. Film" for n in range(40)}


@pytest.fixture(scope="session")
def make_interactions() -> Callable[[int], list[Interaction]]:
    """A function that makes 20 interactions per user, of 40 items, at random times and with random ratings."""

    def make(users: int) -> list[Interaction]:
        draw = random.Random(0)
        interactions = [
            Interaction(f"u{user}", f"i{item}", float(draw.randrange(10_000)), float(draw.randint(1, 10)))
            for user in range(users)
            for item in draw.sample(range(40), 20)
        ]
        draw.shuffle(interactions)
        return interactions

    return make
