"""Common prefixes of texts, and of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def common_length(sequence: Sequence[Item], other_sequence: Sequence[Item]) -> int:
    """Length of the common prefix of two texts or two lists."""
    if other_sequence[: len(sequence)] == sequence:
        return len(sequence)
    shortest = min(len(sequence), len(other_sequence))
    return next((i for i, (a, b) in enumerate(zip(sequence, other_sequence, strict=False)) if a != b), shortest)
