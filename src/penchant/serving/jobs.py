"""An answer to give: what is asked of the models' thread, what it tells, and how answers have ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from penchant.data.tokenized import Ids
from penchant.engine.sampling import Guide
from penchant.serving.metrics import Metrics


@dataclass(frozen=True)
class TokenLogProb:
    """A token and its log-prob, in nats: the model's own, before temperature, top_p and grammars.

    Attributes:
        top: the likeliest tokens in its stead with their log-probs, from the likeliest down.
    """

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some of an answer's text.

    Attributes:
        log_probs: of the tokens drawn since the last piece, where the job asks for them.
    """

    text: str
    log_probs: tuple[TokenLogProb, ...] = ()


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
        index: among the answers to one request; each draws for itself.
        top_log_probs: likeliest tokens to tell at each step; None: no log-probs are told.
        new_guide: makes what the answer is held to; None: nothing.
        deliver: called from the worker's thread with each event; End or Failure is the last.
        deadline: of `time.monotonic`.
        arrived: when its request came, of `time.monotonic`.
        latest_token: when its latest token was drawn; None before the first.
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
    index: int = 0
    top_log_probs: int | None = None
    new_guide: Callable[[], Guide] | None = None
    arrived: float = field(default_factory=time.monotonic)
    latest_token: float | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False


class Outcomes:
    """What has become of jobs: each one's end is counted once.

    Attributes:
        counts: answers that were answered, failed or cancelled, and tokens.
        metrics: the same by expert, with times.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.metrics = Metrics()

    def start(self, job: Job) -> None:
        """A job's turn has come."""
        self.metrics.tokens["prompt_tokens_total", job.expert] += len(job.prompt)
        self.metrics.observe("request_queue_time_seconds", job.expert, time.monotonic() - job.arrived)

    def add_token(self, job: Job) -> None:
        """A token of a job's answer was drawn."""
        drawn_at = time.monotonic()
        self.counts["tokens"] += 1
        self.metrics.tokens["generation_tokens_total", job.expert] += 1
        if job.latest_token is None:
            self.metrics.observe("time_to_first_token_seconds", job.expert, drawn_at - job.arrived)
        else:
            self.metrics.observe("inter_token_latency_seconds", job.expert, drawn_at - job.latest_token)
        job.latest_token = drawn_at

    def end(self, job: Job, event: End | Failure) -> None:
        """Deliver a job's last event, unless it has had one."""
        if job.ended:
            return
        job.ended = True
        if isinstance(event, End):
            self.counts["answered"] += 1
            self.metrics.endings[job.expert, event.reason] += 1
            self.metrics.observe("e2e_request_latency_seconds", job.expert, time.monotonic() - job.arrived)
        else:
            self.counts["failed"] += 1
        # Its listener may be gone, its event loop closed: that must not keep the others from their events.
        with contextlib.suppress(Exception):
            job.deliver(event)

    def cancel(self, job: Job) -> None:
        """Give up a job that nobody listens to."""
        if not job.ended:
            job.ended = True
            self.counts["cancelled"] += 1
            self.metrics.endings[job.expert, "abort"] += 1

    def end_if_gone(self, job: Job, late: str) -> bool:
        """Give up a job that nobody listens to, or whose time is over; whether it was one.

        Args:
            late: what is told of the latter.
        """
        if job.cancelled.is_set():
            self.cancel(job)
        elif time.monotonic() > job.deadline:
            self.end(job, Failure(late, timed_out=True))
        return job.ended
