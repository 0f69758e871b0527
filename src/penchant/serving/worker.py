"""The thread that runs the models: it generates the answers of each expert together, one token per step.

A new request joins the running ones at the next token.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from penchant.serving.batch import Batch
from penchant.serving.experts import Expert, Experts
from penchant.serving.jobs import Failure, Job, Outcomes

T = TypeVar("T")

READ_TOKENS = 4096
"""Maximum number of tokens of new prompts, padded to the longest, that are read between two steps."""


class Overloaded(Exception):
    """The queue is full, or the worker has been stopped."""


@dataclass(frozen=True)
class _Call(Generic[T]):
    """A function to run in the thread of the models, and the future of its result."""

    function: Callable[[], T]
    future: Future[T]

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                self.future.set_result(self.function())
            except Exception as error:
                self.future.set_exception(error)

    def refuse(self) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(Overloaded())


@dataclass(frozen=True)
class _Rows:
    """The rows that one model of an expert generates; a model that was replaced completes its own."""

    name: str
    expert: Expert
    batch: Batch


class Worker:
    """The thread that runs the models, and its queue.

    Args:
        experts: the models.
        batch: maximum number of rows generated together, over all experts.
        waiting: maximum number of waiting jobs and calls.

    Attributes:
        counts: number of jobs by outcome, and of tokens.
        metrics: metrics for Prometheus.
        stopping: whether `stop` was called.
    """

    def __init__(self, experts: Experts, *, batch: int, waiting: int) -> None:
        self._experts, self._max_rows, self._max_waiting = experts, batch, waiting
        self._queue: deque[Job | _Call[Any]] = deque()
        self._condition = threading.Condition()
        self._rows: list[_Rows] = []
        self._outcomes = Outcomes()
        self.counts, self.metrics = self._outcomes.counts, self._outcomes.metrics
        self.stopping = False
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of jobs and calls in the queue."""
        # Under the lock, so that a job whose time ends in the queue has left it once its end can be read.
        with self._condition:
            return len(self._queue)

    @property
    def running(self) -> int:
        """Number of rows being generated."""
        return sum(len(rows.batch) for rows in list(self._rows))

    def load(self) -> dict[str, Counter[str]]:
        """Number of running and of waiting jobs by expert, by the names of `metrics.GAUGES`."""
        with self._condition:
            waiting = [item for item in self._queue if isinstance(item, Job)]
        running: Counter[str] = Counter()
        for rows in list(self._rows):
            running[rows.name] += len(rows.batch)
        return {
            "num_requests_running": running,
            "num_requests_waiting": Counter(job.expert for job in waiting),
        }

    def submit(self, *jobs: Job) -> None:
        """Put the jobs of a request in the queue.

        Raises:
            Overloaded: the queue is full, or the worker has been stopped.
        """
        self._enqueue(jobs, self._max_waiting)

    def resubmit(self, *jobs: Job) -> None:
        """Put the jobs of a request in the queue that already waited for the router, also where the queue is full.

        Raises:
            Overloaded: the worker has been stopped.
        """
        self._enqueue(jobs, None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the thread of the models; it waits in the queue as a job does.

        Raises:
            Overloaded: as for `submit`; the future raises it where the worker stops first.
        """
        call = _Call(function, Future())
        self._enqueue((call,), self._max_waiting)
        return call.future

    def stop(self) -> None:
        """Stop the thread when the running jobs are done; waiting jobs fail."""
        with self._condition:
            self.stopping = True
            self._condition.notify()
        self._thread.join(timeout=10)

    def _enqueue(self, items: tuple[Job | _Call[Any], ...], max_waiting: int | None) -> None:
        with self._condition:
            full = max_waiting is not None and len(self._queue) + len(items) > max_waiting
            if full or self.stopping:
                raise Overloaded
            self._queue.extend(items)
            self._condition.notify()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._queue or self._rows or self.stopping)
                if self.stopping:
                    self._refuse_waiting()
                    if not self._rows:
                        return
            self._admit()
            self._write()

    def _refuse_waiting(self) -> None:
        while self._queue:
            item = self._queue.popleft()
            if isinstance(item, Job):
                self._outcomes.end(item, Failure("the server is stopping"))
            else:
                item.refuse()

    def _admit(self) -> None:
        """Run calls and start jobs in the order of the queue while there is room."""
        jobs: dict[str, list[Job]] = {}
        room, longest, count = self._max_rows - self.running, 0, 0
        while (item := self._next(room - count, longest, count)) is not None:
            if not isinstance(item, Job):
                item.run()
                continue
            longest, count = max(longest, len(item.prompt)), count + 1
            jobs.setdefault(item.expert, []).append(item)
        for name, newcomers in jobs.items():
            try:
                expert = self._experts.get(name)
                self._batch_of(name, expert).add(newcomers, expert)
            except Exception as error:
                for job in newcomers:
                    self._outcomes.end(job, Failure.from_error(error))

    def _batch_of(self, name: str, expert: Expert) -> Batch:
        """The batch of an expert's present model, a new one where it has none."""
        for rows in self._rows:
            if rows.expert is expert:
                return rows.batch
        self._rows.append(_Rows(name, expert, Batch(self._outcomes)))
        return self._rows[-1].batch

    def _next(self, room: int, longest: int, count: int) -> Job | _Call[Any] | None:
        """The next item of the queue that may start now; None where there is none. Cancelled jobs are removed.

        Args:
            room: number of rows that may still join.
            longest: number of tokens of the longest prompt among the joining jobs.
            count: number of joining jobs.
        """
        with self._condition:
            for item in [item for item in self._queue if isinstance(item, Job)]:
                if self._outcomes.end_if_gone(item, "it waited too long for its turn"):
                    self._queue.remove(item)
            if not self._queue or self.stopping:
                return None
            if isinstance(next_item := self._queue[0], Job):
                tokens = max(longest, len(next_item.prompt)) * (count + 1)
                if room < 1 or (count and tokens > READ_TOKENS):
                    return None
            return self._queue.popleft()

    def _write(self) -> None:
        """Generate one token for each row of each expert."""
        for rows in list(self._rows):
            try:
                self._experts.activate(rows.expert)
                rows.batch.step()
            except Exception as error:
                rows.batch.fail(Failure.from_error(error))
            if not len(rows.batch):
                self._rows.remove(rows)
