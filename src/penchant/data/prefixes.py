"""Common prefixes of texts, and of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def common_length(first: Sequence[Item], second: Sequence[Item]) -> int:
    """Length of the common prefix of two texts, or of two lists."""
    if second[: len(first)] == first:
        return len(first)
    shortest = min(len(first), len(second))
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), shortest)
