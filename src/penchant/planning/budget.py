"""The largest token budget whose planned peak of memory fits, found with few plans."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from penchant.config.run_sections import SAFE_TOKEN_BUDGET

CARD_SHARE = 0.85
"""Share of a card's free memory that the planned peak may take: the allocator's blocks take some of the rest."""

STEP = 512
"""Budgets below a whole step are multiples of it, so that a little more or less free memory mostly changes nothing."""

GROWTH = 8
"""Factor between two plans while all have fitted."""

CLOSE = 0.97
"""Share of the room that a planned peak must fill to be taken at once."""

MAX_PLANS = 6
"""Maximum number of plans for one budget."""


def largest_budget(peak_of: Callable[[int], int], smallest: int, step_tokens: int, room: int) -> int | None:
    """The largest budget found whose peak fits into the room; None where not even the smallest does.

    Args:
        peak_of: returns the peak of memory in bytes with a budget; it grows with the budget.
        smallest: tokens of the longest group, which is never split.
        step_tokens: tokens of a step, which a larger budget would not change.
        room: bytes.
    """
    peak = cache(peak_of)
    step_tokens = max(step_tokens, smallest)
    low = min(max(smallest, SAFE_TOKEN_BUDGET), step_tokens)
    high = None if peak(low) <= room else low
    if high is not None:
        low = smallest
        if peak(low) > room:
            return None
    while low < step_tokens and peak.cache_info().misses < MAX_PLANS and peak(low) < CLOSE * room:
        guess = min(step_tokens, GROWTH * low)
        if high is not None:
            share = (room - peak(low)) / (peak(high) - peak(low))
            guess = int(low + share * (high - low)) // STEP * STEP
        if not low < guess < (high or guess + 1):
            break
        low, high = (guess, high) if peak(guess) <= room else (low, guess)
    return low
