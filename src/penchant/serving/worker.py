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
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from penchant.serving.experts import Experts
from penchant.serving.jobs import Failure, Job, Outcomes
from penchant.serving.rows import Rows

T = TypeVar("T")

GATHER_SECONDS = 0.01
"""How long the first request of a batch waits for others."""


def reach(jobs: Sequence[Job]) -> int:
    """Tokens of the longest row, as a batch runs until its last row ends: places a model may not have."""
    return max(len(job.prompt) for job in jobs) + max(job.max_tokens for job in jobs)


class Overloaded(Exception):
    """More requests wait than may, or the worker has been stopped."""


@dataclass(frozen=True)
class _Call(Generic[T]):
    """Something to run in the thread of the models."""

    function: Callable[[], T]
    found: Future[T]

    def run(self) -> None:
        if self.found.set_running_or_notify_cancel():
            try:
                self.found.set_result(self.function())
            except Exception as error:
                self.found.set_exception(error)

    def refuse(self) -> None:
        if self.found.set_running_or_notify_cancel():
            self.found.set_exception(Overloaded())


class Worker:
    """The thread, and the queue before it.

    Args:
        experts: the models.
        batch: rows generated together, at most.
        waiting: requests that may wait.

    Attributes:
        counts: answers by outcome, and tokens.
        metrics: what Prometheus is told.
    """

    def __init__(self, experts: Experts, *, batch: int, waiting: int) -> None:
        self._experts, self._batch, self._most = experts, batch, waiting
        self._jobs: queue.Queue[Job | _Call[Any] | None] = queue.Queue()
        self._left: list[Job] = []
        self._batch_jobs: list[Job] = []
        self._outcomes = Outcomes()
        self.counts, self.metrics = self._outcomes.counts, self._outcomes.metrics
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return self._jobs.qsize() + len(self._left)

    @property
    def running(self) -> int:
        return len(self._batch_jobs)

    def load(self) -> dict[str, Counter[str]]:
        """By the names of `metrics.NOW` the jobs of each expert."""
        with self._jobs.mutex:
            waiting = [*self._left, *self._jobs.queue]
        return {
            "num_requests_running": Counter(job.expert for job in self._batch_jobs),
            "num_requests_waiting": Counter(job.expert for job in waiting if isinstance(job, Job)),
        }

    def submit(self, job: Job) -> None:
        """Put a job in the queue.

        Raises:
            Overloaded: too many wait already, or the worker has been stopped.
        """
        self._put(job, self._most)

    def go_on(self, job: Job) -> None:
        """Put in the job of a request that waited once already, for the router: it is not refused now for others.

        Raises:
            Overloaded: the worker has been stopped.
        """
        self._put(job, None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something in the thread of the models; it waits in the queue as a job does.

        Raises:
            Overloaded: as of `submit`, also by the future where the worker stops before its turn.
        """
        call = _Call(function, Future())
        self._put(call, self._most)
        return call.found

    def _put(self, item: Job | _Call[Any], most: int | None) -> None:
        if (most is not None and self.waiting >= most) or not self._thread.is_alive():
            raise Overloaded
        self._jobs.put(item)

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
                first.run()
                continue
            jobs = self._gather(first)
            self._batch_jobs = jobs
            try:
                self._answer([job for job in jobs if not self._gone(job)])
            except Exception as error:
                for job in jobs:
                    self._outcomes.end(job, Failure.of(error))
            self._batch_jobs = []
        while self._left or not self._jobs.empty():
            late = self._left.pop() if self._left else self._jobs.get()
            if isinstance(late, Job):
                self._outcomes.end(late, Failure("the server is stopping"))
            elif late is not None:
                late.refuse()

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
                item.run()
            else:
                place(item)
        self._left = others
        return jobs

    def _gone(self, job: Job) -> bool:
        if job.cancelled.is_set():
            self._outcomes.cancel(job)
            return True
        if time.monotonic() > job.deadline:
            self._outcomes.end(job, Failure("it waited too long for its turn", timed_out=True))
            return True
        return False

    @torch.no_grad()
    def _answer(self, jobs: Sequence[Job]) -> None:
        if not jobs:
            return
        expert = self._experts.get(jobs[0].expert)
        rows = Rows(jobs, expert, self._outcomes)
        if not rows:
            return
        ids, mask = rows.prompts()
        device = expert.model.device
        expert.model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=rows.max_tokens,
            do_sample=False,
            logits_processor=[rows.draw],
            stopping_criteria=[rows.watch],
            pad_token_id=0,
            eos_token_id=None,
            use_cache=True,
        )
