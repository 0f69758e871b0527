"""A world of users who choose at random."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from penchant.data.interactions import Interaction


@pytest.fixture(scope="session")
def titles() -> dict[str, str]:
    return {f"i{n}": f"The {n}. Film" for n in range(40)}


@pytest.fixture(scope="session")
def made() -> Callable[[int], list[Interaction]]:
    """20 of 40 items for each of so many users, at random times, with random ratings."""

    def make(users: int) -> list[Interaction]:
        draw = random.Random(0)
        found = [
            Interaction(f"u{user}", f"i{item}", float(draw.randrange(10_000)), float(draw.randint(1, 10)))
            for user in range(users)
            for item in draw.sample(range(40), 20)
        ]
        draw.shuffle(found)
        return found

    return make
