"""Limits on the requests to the server."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penchant.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Limits on the requests to the server.

    Attributes:
        batch: maximum number of rows generated together.
        waiting: maximum number of waiting requests; further ones are refused.
        max_tokens: maximum number of tokens of an answer, and the default where the client names none.
        timeout_s: seconds from a request to the end of its answer.
        read_timeout_s: seconds for receiving a request's headers, and as many for its body.
        max_body_bytes: maximum size of a request's body; a larger one is refused with 413.

    Raises:
        ConfigError: a time-out is not above 0, or is not finite.
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
                raise ConfigError(
                    f"{seconds:g} is not a time-out; expected more than 0 s", where=flag, fix=f"{flag} 60"
                )
