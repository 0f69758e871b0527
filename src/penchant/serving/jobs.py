"""An answer to give: what is asked of the models' thread, what it tells, and how answers have ended."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penchant.data.tokenized import Ids


@dataclass(frozen=True)
class Piece:
    """Some of an answer's text."""

    text: str


@dataclass(frozen=True)
class End:
    """An answer is whole: `reason` is stop or length."""

    reason: str
    tokens: int


@dataclass(frozen=True)
class Failure:
    """An answer will not come."""

    message: str
    timed_out: bool = False

    @classmethod
    def of(cls, error: Exception) -> Failure:
        return cls(f"{type(error).__name__}: {error}")


Event = Piece | End | Failure


@dataclass(eq=False)
class Job:
    """One answer to give.

    Attributes:
        seed: any whole number.
        deliver: called from the worker's thread with each event; End or Failure is the last.
        deadline: of `time.monotonic`.
        cancelled: set where nobody listens any more.
        ended: whether its last event was delivered, or it was given up.
    """

    expert: str
    prompt: Ids
    max_tokens: int
    temperature: float
    top_p: float
    stops: tuple[str, ...]
    seed: int
    deadline: float
    deliver: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False


class Outcomes:
    """How answers have ended, each counted once.

    Attributes:
        counts: answers that were answered, failed or cancelled, and tokens.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def end(self, job: Job, event: End | Failure) -> None:
        """Deliver a job's last event, unless it has had one."""
        if job.ended:
            return
        job.ended = True
        self.counts["answered" if isinstance(event, End) else "failed"] += 1
        # Its listener may be gone, its event loop closed: that must not keep the others from their events.
        with contextlib.suppress(Exception):
            job.deliver(event)

    def cancel(self, job: Job) -> None:
        """Give up a job that nobody listens to."""
        if not job.ended:
            job.ended = True
            self.counts["cancelled"] += 1
