"""One thread that holds the models: takes requests for one expert together, and hands out their words as they come.

Generation is transformers' own (`generate`, its caches); what it draws, and when a row ends, is decided here row by
row, so that requests with different settings share a batch. A request that comes while a batch is at work waits for the
next.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from penchant.data.tokenized import Ids
from penchant.engine.sampling import choose
from penchant.serving.experts import Experts
from penchant.serving.texts import Outgoing

T = TypeVar("T")

GATHER_SECONDS = 0.01
"""How long the first request of a batch waits for others."""


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


Event = Piece | End | Failure


@dataclass(eq=False)
class Job:
    """One answer to give.

    Attributes:
        deliver: called from the worker's thread with each event; End or Failure is the last.
        deadline: of `time.monotonic`.
        cancelled: set where nobody listens any more.
        ended: whether its last event was delivered.
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


def reach(jobs: Sequence[Job]) -> int:
    """Tokens of the longest row, as a batch runs until its last row ends: places a model may not have."""
    return max(len(job.prompt) for job in jobs) + max(job.max_tokens for job in jobs)


class Overloaded(Exception):
    """More requests wait than may."""


class Worker:
    """The thread, and the queue before it.

    Args:
        experts: the models.
        batch: rows generated together, at most.
        waiting: requests that may wait.

    Attributes:
        counts: answers by outcome, and tokens.
    """

    def __init__(self, experts: Experts, *, batch: int, waiting: int) -> None:
        self._experts, self._batch, self._most = experts, batch, waiting
        self._jobs: queue.Queue[Job | Callable[[], None] | None] = queue.Queue()
        self._left: list[Job] = []
        self.running = 0
        self.counts: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._jobs.qsize() + len(self._left)

    def submit(self, job: Job) -> None:
        """Put a job in the queue.

        Raises:
            Overloaded: too many wait already, or the worker has been stopped.
        """
        if self.waiting >= self._most or not self._thread.is_alive():
            raise Overloaded
        self._jobs.put(job)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something in the thread of the models."""
        found: Future[T] = Future()

        def run() -> None:
            if found.set_running_or_notify_cancel():
                try:
                    found.set_result(function())
                except Exception as error:
                    found.set_exception(error)

        self._jobs.put(run)
        return found

    def stop(self) -> None:
        """End the thread; what still waits fails."""
        self._jobs.put(None)
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while True:
            first = self._left.pop(0) if self._left else self._jobs.get()
            if first is None:
                break
            if not isinstance(first, Job):
                first()
                continue
            jobs = self._gather(first)
            self.running = len(jobs)
            try:
                self._answer([job for job in jobs if not self._gone(job)])
            except Exception as error:
                for job in jobs:
                    self._end(job, Failure(f"{type(error).__name__}: {error}"))
            self.running = 0
        while self._left or not self._jobs.empty():
            late = self._left.pop() if self._left else self._jobs.get()
            if isinstance(late, Job):
                self._end(late, Failure("the server is stopping"))

    def _gather(self, first: Job) -> list[Job]:
        """Those that wait for the same expert and fit its context together; the others keep their places."""
        until = time.monotonic() + GATHER_SECONDS
        jobs = [first]
        others: list[Job] = []
        context = self._experts.context(first.expert)

        def place(job: Job) -> None:
            fits = job.expert == first.expert and len(jobs) < self._batch and reach([*jobs, job]) <= context
            (jobs if fits else others).append(job)

        for job in self._left:
            place(job)
        while len(jobs) < self._batch:
            try:
                item = self._jobs.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                break
            if item is None:
                self._jobs.put(None)
                break
            if not isinstance(item, Job):
                item()
            else:
                place(item)
        self._left = others
        return jobs

    def _gone(self, job: Job) -> bool:
        if job.cancelled.is_set():
            self.counts["cancelled"] += 1
            return True
        if time.monotonic() > job.deadline:
            self._end(job, Failure("it waited too long for its turn", timed_out=True))
            return True
        return False

    def _end(self, job: Job, event: End | Failure) -> None:
        if job.ended:
            return
        job.ended = True
        self.counts["answered" if isinstance(event, End) else "failed"] += 1
        job.deliver(event)

    @torch.no_grad()
    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        expert = self._experts.get(jobs[0].expert)
        width = max(len(job.prompt) for job in jobs)
        ids = torch.zeros(len(jobs), width, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, job in enumerate(jobs):
            ids[row, width - len(job.prompt) :] = torch.from_numpy(job.prompt)
            mask[row, width - len(job.prompt) :] = 1
        rows = _Rows(self, jobs, width, expert.ends, expert.decode)
        device = expert.model.device
        expert.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=max(job.max_tokens for job in jobs),
            do_sample=False,
            logits_processor=[rows.draw],
            stopping_criteria=[rows.watch],
            pad_token_id=0,
            eos_token_id=None,
            use_cache=True,
        )


class _Rows:
    """A batch at work: each row's draws, its text on the way out, and whether it has ended."""

    def __init__(
        self,
        worker: Worker,
        jobs: Sequence[Job],
        width: int,
        ends: frozenset[int],
        decode: Callable[[Ids, Sequence[int]], str],
    ) -> None:
        self._worker, self._jobs, self._width, self._ends, self._decode = worker, jobs, width, ends, decode
        self._draws = [np.random.default_rng(job.seed) for job in jobs]
        self._texts = [Outgoing(job.stops) for job in jobs]
        self._done = [False] * len(jobs)

    def draw(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor: all but the token that is drawn become impossible."""
        tokens = torch.cat(
            [
                choose(scores[row : row + 1], job.temperature, job.top_p, torch.tensor([self._draws[row].random()]))
                for row, job in enumerate(self._jobs)
            ]
        )
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def watch(self, input_ids: Tensor, scores: Any, **others: Any) -> Tensor:
        """A stopping criterion: hands out what is new, and says which rows have ended."""
        for row, job in enumerate(self._jobs):
            if not self._done[row]:
                self._done[row] = self._read(row, job, input_ids[row, self._width :].tolist())
        return torch.tensor(self._done, device=input_ids.device)

    def _read(self, row: int, job: Job, tokens: list[int]) -> bool:
        self._worker.counts["tokens"] += 1
        if job.cancelled.is_set():
            self._worker.counts["cancelled"] += 1
            return True
        if time.monotonic() > job.deadline:
            self._worker._end(job, Failure("it took too long", timed_out=True))
            return True
        ended = tokens[-1] in self._ends
        full = len(tokens) >= job.max_tokens
        text = self._decode(job.prompt, tokens[:-1] if ended else tokens)
        new, stopped = self._texts[row].read(text, last=ended or full)
        if new:
            job.deliver(Piece(new))
        if ended or stopped or full:
            self._worker._end(job, End("stop" if ended or stopped else "length", len(tokens)))
            return True
        return False
