"""Jobs for the thread that runs the models, and metrics of the server in Prometheus' text format."""

from __future__ import annotations

import bisect
import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from penchant.data.tokenized import Ids
from penchant.engine.sampling import Guide

SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0)
"""Upper bounds of the histograms' buckets."""

HISTOGRAMS: Mapping[str, str] = {
    "time_to_first_token_seconds": "Seconds from a request's arrival to its first token.",
    "inter_token_latency_seconds": "Seconds between two tokens of an answer.",
    "request_queue_time_seconds": "Seconds that a request waited for its turn.",
    "e2e_request_latency_seconds": "Seconds from a request's arrival to its answer's end.",
}

TOKENS: Mapping[str, str] = {
    "prompt_tokens_total": "Tokens of prompts that were read.",
    "generation_tokens_total": "Tokens that were generated.",
}

GAUGES: Mapping[str, str] = {
    "num_requests_running": "Answers that are being generated.",
    "num_requests_waiting": "Answers that wait for their turn.",
}


@dataclass
class Histogram:
    """A histogram of values in seconds.

    Attributes:
        counts: number of values in each bucket of `SECONDS`; the last bucket has the values above all bounds.
        total: sum of the values.
    """

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect.bisect_left(SECONDS, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        """The lines of Prometheus' format, with cumulative buckets."""
        cumulated = 0
        for upper_bound, count in zip((*map(str, SECONDS), "+Inf"), self.counts, strict=True):
            cumulated += count
            yield f'{name}_bucket{{{labels},le="{upper_bound}"}} {cumulated}'
        yield f"{name}_sum{{{labels}}} {self.total}"
        yield f"{name}_count{{{labels}}} {cumulated}"


class Metrics:
    """Counts and times by expert.

    Attributes:
        histograms: histograms by name in `HISTOGRAMS` and expert.
        tokens: number of tokens by name in `TOKENS` and expert.
        endings: number of answers by expert and reason of their end: stop, length or abort.
    """

    def __init__(self) -> None:
        self.histograms: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.tokens: Counter[tuple[str, str]] = Counter()
        self.endings: Counter[tuple[str, str]] = Counter()

    def observe(self, name: str, expert: str, seconds: float) -> None:
        """Count a time in a histogram of `HISTOGRAMS`."""
        self.histograms[name, expert].observe(seconds)

    def text(self, experts: Sequence[str], load: Mapping[str, Mapping[str, int]]) -> str:
        """All metrics in Prometheus' text format.

        Args:
            experts: names of the experts.
            load: number of jobs by expert, for each metric of `GAUGES`.
        """
        lines: list[str] = []
        for name, description in GAUGES.items():
            lines += _head(name, description, "gauge")
            lines += [f"vllm:{name}{{{_labels(expert)}}} {load[name].get(expert, 0)}" for expert in experts]
        for name, description in TOKENS.items():
            lines += _head(name, description, "counter")
            lines += [f"vllm:{name}{{{_labels(expert)}}} {self.tokens[name, expert]}" for expert in experts]
        lines += _head("request_success_total", "Answers that ended, by reason.", "counter")
        for expert in experts:
            for reason in ("stop", "length", "abort"):
                labels = f'{_labels(expert)},finished_reason="{reason}"'
                lines.append(f"vllm:request_success_total{{{labels}}} {self.endings[expert, reason]}")
        for name, description in HISTOGRAMS.items():
            lines += _head(name, description, "histogram")
            for expert in experts:
                lines += self.histograms[name, expert].lines(f"vllm:{name}", _labels(expert))
        return "\n".join(lines) + "\n"


def _head(name: str, description: str, kind: str) -> list[str]:
    return [f"# HELP vllm:{name} {description}", f"# TYPE vllm:{name} {kind}"]


def _labels(expert: str) -> str:
    escaped = expert.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'model_name="{escaped}"'


@dataclass(frozen=True)
class TokenLogProb:
    """A token with its log-prob under the model, before temperature, top_p and grammars.

    Attributes:
        text: text of the token.
        log_prob: log-prob of the token, in nats.
        top: the likeliest tokens at this step with their log-probs, from the likeliest down.
    """

    text: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A piece of an answer's text.

    Attributes:
        text: the text.
        log_probs: log-probs of the tokens since the last piece, where the job asks for them.
    """

    text: str
    log_probs: tuple[TokenLogProb, ...] = ()


@dataclass(frozen=True)
class End:
    """The end of a complete answer.

    Attributes:
        reason: stop or length.
        tokens: number of generated tokens.
    """

    reason: str
    tokens: int


@dataclass(frozen=True)
class Failure:
    """The end of an answer that failed.

    Attributes:
        message: description of the error.
        timed_out: whether the deadline has passed.
    """

    message: str
    timed_out: bool = False

    @classmethod
    def from_error(cls, error: Exception) -> Failure:
        """The failure that an exception caused."""
        return cls(f"{type(error).__name__}: {error}")


Event = Piece | End | Failure


@dataclass(eq=False)
class Job:
    """One answer to generate.

    Attributes:
        expert: name of the expert that answers.
        prompt: [T] token ids of the prompt.
        max_tokens: maximum number of tokens of the answer.
        temperature: sampling temperature; 0 takes the likeliest token.
        top_p: probability mass of nucleus sampling.
        stops: sequences that end the text.
        seed: seed of the sampling, any whole number.
        deadline: time by which the answer must end, on the clock of `time.monotonic`.
        deliver: called from the worker's thread with each event; End or Failure is the last.
        index: index among the answers to one request, which are sampled independently.
        top_log_probs: number of likeliest tokens to report at each step; None for no log-probs.
        new_guide: makes the guide that constrains the answer; None for no constraint.
        arrived: time at which the request arrived, on the clock of `time.monotonic`.
        latest_token: time of the latest token, on the same clock; None before the first one.
        cancelled: set when the client has disconnected.
        is_finished: whether the last event was delivered, or the job was cancelled.
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
    is_finished: bool = False


class Outcomes:
    """The record of the jobs' outcomes, which counts the end of each job once.

    Attributes:
        counts: number of jobs that were answered, failed or cancelled, and of tokens.
        metrics: counts and times by expert.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.metrics = Metrics()

    def start(self, job: Job) -> None:
        """Record that a job starts."""
        self.metrics.tokens["prompt_tokens_total", job.expert] += len(job.prompt)
        self.metrics.observe("request_queue_time_seconds", job.expert, time.monotonic() - job.arrived)

    def add_token(self, job: Job) -> None:
        """Record a token of a job's answer."""
        drawn_at = time.monotonic()
        self.counts["tokens"] += 1
        self.metrics.tokens["generation_tokens_total", job.expert] += 1
        if job.latest_token is None:
            self.metrics.observe("time_to_first_token_seconds", job.expert, drawn_at - job.arrived)
        else:
            self.metrics.observe("inter_token_latency_seconds", job.expert, drawn_at - job.latest_token)
        job.latest_token = drawn_at

    def end(self, job: Job, event: End | Failure) -> None:
        """Deliver a job's last event, unless it is already finished."""
        if job.is_finished:
            return
        job.is_finished = True
        if isinstance(event, End):
            self.counts["answered"] += 1
            self.metrics.endings[job.expert, event.reason] += 1
            self.metrics.observe("e2e_request_latency_seconds", job.expert, time.monotonic() - job.arrived)
        else:
            self.counts["failed"] += 1
        # The event loop of the client may be closed, which must not prevent the events of other jobs.
        with contextlib.suppress(Exception):
            job.deliver(event)

    def cancel(self, job: Job) -> None:
        """Finish a job whose client has disconnected."""
        if not job.is_finished:
            job.is_finished = True
            self.counts["cancelled"] += 1
            self.metrics.endings[job.expert, "abort"] += 1

    def end_if_gone(self, job: Job, late: str) -> bool:
        """Finish a job whose client has disconnected or whose deadline has passed; whether the job is finished.

        Args:
            job: the job to check.
            late: message of the failure where the deadline has passed.
        """
        if job.cancelled.is_set():
            self.cancel(job)
        elif time.monotonic() > job.deadline:
            self.end(job, Failure(late, timed_out=True))
        return job.is_finished
