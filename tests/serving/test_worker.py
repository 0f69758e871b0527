"""The thread of the models, where a model fails."""

from __future__ import annotations

import queue
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from penchant.serving.jobs import Event, Failure, Job, Outcomes
from penchant.serving.worker import Overloaded, Worker


class Broken:
    """Experts whose model fails to load."""

    def get(self, name):
        raise RuntimeError("no memory")


class Slow:
    def get(self, name):
        time.sleep(0.3)
        raise RuntimeError("late")


def job(events: queue.Queue, expert: str = "a", seconds: float = 10.0) -> Job:
    deadline = time.monotonic() + seconds
    return Job(expert, np.array([1]), 4, 0.0, 1.0, (), 0, deadline, events.put)


def test_a_failure_ends_only_its_own_requests():
    events: queue.Queue = queue.Queue()
    worker = Worker(Broken(), batch=4, waiting=8)
    for expert in ("a", "b", "a"):
        worker.submit(job(events, expert))
    assert [events.get(timeout=5) for _ in range(3)] == [Failure("RuntimeError: no memory")] * 3
    assert worker.call(lambda: 7).result(timeout=5) == 7
    with pytest.raises(ZeroDivisionError):
        worker.call(lambda: 1 / 0).result(timeout=5)
    worker.stop()
    assert worker.counts["failed"] == 3


def test_late_jobs_fail_and_jobs_above_the_limit_are_refused():
    events: queue.Queue = queue.Queue()
    worker = Worker(Slow(), batch=1, waiting=2)
    worker.submit(job(events))
    time.sleep(0.1)
    worker.submit(job(events, seconds=0.05))
    worker.submit(job(events))
    with pytest.raises(Overloaded):
        worker.submit(job(events))
    failures = [events.get(timeout=5) for _ in range(3)]
    assert failures[1] == Failure("it waited too long for its turn", timed_out=True)
    assert failures[0] == failures[2] == Failure("RuntimeError: late")


def test_stopping_fails_waiting_jobs():
    events: queue.Queue = queue.Queue()
    worker = Worker(Slow(), batch=1, waiting=9)
    worker.submit(job(events))
    time.sleep(0.05)
    worker.stop()
    assert events.get(timeout=5) == Failure("RuntimeError: late")
    with pytest.raises(Overloaded):
        worker.submit(job(events))


@pytest.fixture
def held_worker(wait_until):
    """A function that makes a worker whose thread is busy until `release` is set, and the call that keeps it busy."""
    release = threading.Event()

    def hold(waiting):
        worker = Worker(Broken(), batch=1, waiting=waiting)
        holding = worker.call(lambda: release.wait(10))
        wait_until(lambda: worker.waiting == 0)
        return worker, holding, release

    return hold


def test_calls_wait_as_jobs_do(held_worker):
    events: queue.Queue = queue.Queue()
    worker, holding, release = held_worker(waiting=2)
    late = worker.call(lambda: 7)
    worker.submit(job(events))
    with pytest.raises(Overloaded):
        worker.call(lambda: 8)
    release.set()
    assert (holding.result(timeout=5), late.result(timeout=5)) == (True, 7)
    assert events.get(timeout=5) == Failure("RuntimeError: no memory")
    worker.stop()
    with pytest.raises(Overloaded):
        worker.call(lambda: 9)


def test_stopping_fails_waiting_calls(held_worker, wait_until):
    worker, holding, release = held_worker(waiting=9)
    late = worker.call(lambda: 7)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    wait_until(lambda: worker.stopping)
    with pytest.raises(Overloaded):
        worker.call(lambda: 8)
    release.set()
    assert holding.result(timeout=5)
    stopping.join()
    with pytest.raises(Overloaded):
        late.result(timeout=5)


class HeldBatch:
    """A stand-in for a batch whose rows run until `release` is set."""

    release = threading.Event()

    def __init__(self, outcomes: Outcomes) -> None:
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, jobs, expert) -> None:
        self._jobs += jobs

    def step(self) -> None:
        if self.release.wait(0.01):
            self._jobs.clear()


def test_a_cancelled_answer_makes_room_for_others(monkeypatch, wait_until):
    """It leaves the queue behind a job that cannot start yet, because the only row is in use."""
    events: queue.Queue = queue.Queue()
    monkeypatch.setattr(HeldBatch, "release", threading.Event())
    monkeypatch.setattr("penchant.serving.worker.Batch", HeldBatch)
    worker = Worker(SimpleNamespace(get=lambda name: None, activate=lambda expert: None), batch=1, waiting=3)
    worker.submit(job(events))
    wait_until(lambda: worker.running == 1)
    cancelled, late = job(events), job(events)
    worker.submit(job(events), cancelled, late)
    with pytest.raises(Overloaded):
        worker.submit(job(events))
    cancelled.cancelled.set()
    late.deadline = 0.0
    assert events.get(timeout=5) == Failure("it waited too long for its turn", timed_out=True)
    wait_until(lambda: worker.waiting == 1)
    worker.submit(job(events), job(events))
    assert (worker.running, worker.waiting) == (1, 3)
    assert worker.counts == {"cancelled": 1, "failed": 1}
    HeldBatch.release.set()
    worker.stop()


def test_the_answers_of_a_request_wait_together_or_not_at_all(held_worker):
    events: queue.Queue = queue.Queue()
    worker, _, release = held_worker(waiting=3)
    worker.submit(job(events), job(events))
    with pytest.raises(Overloaded):
        worker.submit(job(events), job(events))
    assert worker.waiting == 2
    worker.submit(job(events))
    release.set()
    worker.stop()


def test_a_job_that_times_out_in_the_queue_is_not_counted_as_waiting(held_worker):
    """The worker delivers its end, and pauses there."""
    events: queue.Queue = queue.Queue()
    worker, _, release = held_worker(waiting=2)
    late = job(events, seconds=0.01)

    def deliver(event: Event) -> None:
        events.put(event)
        time.sleep(0.3)

    late.deliver = deliver
    worker.submit(late)
    assert worker.waiting == 1
    time.sleep(0.02)
    release.set()
    assert events.get(timeout=5) == Failure("it waited too long for its turn", timed_out=True)
    assert worker.waiting == 0
    worker.stop()
