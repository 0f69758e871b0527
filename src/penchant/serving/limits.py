"""What a request may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        batch: rows generated together.
        waiting: requests that may wait; further ones are refused.
        max_tokens: of an answer, and what is given where the client names none.
        timeout_s: from a request to its answer's end.
    """

    batch: int = 32
    waiting: int = 256
    max_tokens: int = 512
    timeout_s: float = 120.0
