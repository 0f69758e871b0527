"""One thread that holds the models: it writes the answers of each expert together, a token at a time.

A request joins those at work at the next token, whatever they still have to write.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from penchant.serving.batch import Batch
from penchant.serving.experts import Experts
from penchant.serving.jobs import Failure, Job, Outcomes

T = TypeVar("T")

READ_TOKENS = 4096
"""Tokens of new prompts, padded to the longest, that are read before those at work write their next token."""


class Overloaded(Exception):
    """More requests wait than may, or the worker has been stopped."""


@dataclass(frozen=True)
class _Call(Generic[T]):
    """Something to run in the thread of the models."""

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


class Worker:
    """The thread, and the queue before it.

    Args:
        experts: the models.
        batch: rows written together, at most, of all experts.
        waiting: jobs and calls that may wait.

    Attributes:
        counts: answers by outcome, and tokens.
        metrics: what Prometheus is told.
        stopping: whether it has been told to stop.
    """

    def __init__(self, experts: Experts, *, batch: int, waiting: int) -> None:
        self._experts, self._most_rows, self._most_waiting = experts, batch, waiting
        self._queue: deque[Job | _Call[Any]] = deque()
        self._changed = threading.Condition()
        self._batches: dict[str, Batch] = {}
        self._outcomes = Outcomes()
        self.counts, self.metrics = self._outcomes.counts, self._outcomes.metrics
        self.stopping = False
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        # Under the lock, so that a job whose time ends in the queue has left it once its end can be read.
        with self._changed:
            return len(self._queue)

    @property
    def running(self) -> int:
        return sum(len(batch) for batch in list(self._batches.values()))

    def load(self) -> dict[str, Counter[str]]:
        """By the names of `metrics.GAUGES` the jobs of each expert."""
        with self._changed:
            waiting = [item for item in self._queue if isinstance(item, Job)]
        return {
            "num_requests_running": Counter({name: len(batch) for name, batch in list(self._batches.items())}),
            "num_requests_waiting": Counter(job.expert for job in waiting),
        }

    def submit(self, *jobs: Job) -> None:
        """Put the jobs of a request in the queue.

        Raises:
            Overloaded: too many would wait, or the worker has been stopped.
        """
        self._enqueue(jobs, self._most_waiting)

    def go_on(self, *jobs: Job) -> None:
        """Put in the jobs of a request that waited once already, for the router: it is not refused now for others.

        Raises:
            Overloaded: the worker has been stopped.
        """
        self._enqueue(jobs, None)

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run something in the thread of the models; it waits in the queue as a job does.

        Raises:
            Overloaded: as of `submit`, also by the future where the worker stops before its turn.
        """
        call = _Call(function, Future())
        self._enqueue((call,), self._most_waiting)
        return call.future

    def stop(self) -> None:
        """End the thread once those at work are done; what waits fails."""
        with self._changed:
            self.stopping = True
            self._changed.notify()
        self._thread.join(timeout=10)

    def _enqueue(self, items: tuple[Job | _Call[Any], ...], most: int | None) -> None:
        with self._changed:
            full = most is not None and len(self._queue) + len(items) > most
            if full or self.stopping:
                raise Overloaded
            self._queue.extend(items)
            self._changed.notify()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._batches or self.stopping)
                if self.stopping:
                    self._refuse_waiting()
                    if not self._batches:
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
        """Run calls and let jobs join, in their order, while there is room."""
        jobs: dict[str, list[Job]] = {}
        room, longest, count = self._most_rows - self.running, 0, 0
        while (item := self._next(room - count, longest, count)) is not None:
            if not isinstance(item, Job):
                item.run()
                continue
            longest, count = max(longest, len(item.prompt)), count + 1
            jobs.setdefault(item.expert, []).append(item)
        for name, newcomers in jobs.items():
            try:
                expert = self._experts.get(name)
                self._batches.setdefault(name, Batch(self._outcomes)).add(newcomers, expert)
            except Exception as error:
                for job in newcomers:
                    self._outcomes.end(job, Failure.of(error))

    def _next(self, room: int, longest: int, count: int) -> Job | _Call[Any] | None:
        """The next in the queue that may go on now; those that nobody waits for any more are dropped.

        Args:
            room: rows that may join.
            longest: tokens of the longest prompt among those that join.
            count: how many join.
        """
        with self._changed:
            for item in [item for item in self._queue if isinstance(item, Job)]:
                if self._outcomes.end_if_gone(item, "it waited too long for its turn"):
                    self._queue.remove(item)
            if not self._queue or self.stopping:
                return None
            if isinstance(first := self._queue[0], Job):
                tokens = max(longest, len(first.prompt)) * (count + 1)
                if room < 1 or (count and tokens > READ_TOKENS):
                    return None
            return self._queue.popleft()

    def _write(self) -> None:
        """One token more in each row of each expert."""
        for name, batch in list(self._batches.items()):
            try:
                self._experts.get(name)
                batch.step()
            except Exception as error:
                batch.fail(Failure.of(error))
            if not len(batch):
                del self._batches[name]
