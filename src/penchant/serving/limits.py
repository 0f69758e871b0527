"""What a request may take."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penchant.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        batch: rows generated together.
        waiting: requests that may wait; further ones are refused.
        max_tokens: of an answer, and what is given where the client names none.
        timeout_s: seconds from a request to its answer's end.
        read_timeout_s: seconds in which a client has to send a request's headers, and as many for its body.
        max_body_bytes: of a request; a larger one is refused with 413.

    Raises:
        ConfigError: a number of seconds that is not above 0, or is not finite.
    """

    batch: int = 32
    waiting: int = 256
    max_tokens: int = 512
    timeout_s: float = 120.0
    read_timeout_s: float = 30.0
    max_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("timeout_s", "read_timeout_s"):
            seconds = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(f"{seconds:g} is no time-out; expected seconds above 0", where=flag, fix=f"{flag} 60")
