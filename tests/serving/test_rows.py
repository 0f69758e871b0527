"""A batch's rows: what goes wrong for one ends that one."""

from __future__ import annotations

import math
import queue
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from penchant.serving.batch import Batch
from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Event, Failure, Job, Outcomes, Piece
from penchant.serving.worker import Worker


class Letters:
    """The text of tokens: a letter for each."""

    def add(self, token: int) -> str:
        if token == 9:
            raise ValueError("nine is no letter")
        return "abcdefghi"[token]

    def finish(self) -> str:
        return ""

    def preview(self, token: int) -> str:
        return self.add(token)


EXPERT = SimpleNamespace(model=None, ends={2}, text=lambda prompt: Letters())


class Script:
    """Stands for a model: at each step it gives rows the scores that were written for them."""

    def __init__(self, steps: list[list[list[float]]]) -> None:
        self._scores = torch.tensor(steps)
        self._step = 0
        self.rows = list(range(self._scores.shape[1]))
        self.drawn: list[list[int]] = [[] for _ in self.rows]

    @property
    def logits(self) -> torch.Tensor:
        return self._scores[self._step, self.rows]

    def keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[index] for index in indices]

    def trim(self) -> None:
        pass

    def feed(self, tokens: list[int]) -> None:
        for row, token in zip(self.rows, tokens, strict=True):
            self.drawn[row].append(token)
        self._step += 1


class Told(list):
    """A job's events, in order."""

    def job(self, **changes: object) -> Job:
        deadline = time.monotonic() + 30
        return replace(Job("a", np.array([1]), 3, 0.0, 1.0, (), 0, deadline, self.append), **changes)


@pytest.fixture
def write(monkeypatch):
    """Writes jobs' answers from a script's scores, until all have ended; the tokens that were fed on to the model."""

    def write_answers(jobs: list[Job], steps: list[list[list[float]]], outcomes: Outcomes) -> list[list[int]]:
        script, batch = Script(steps), Batch(outcomes)
        monkeypatch.setattr("penchant.serving.batch.read_joinable", lambda model, prompts: script)
        batch.add(jobs, EXPERT)
        while len(batch):
            batch.step()
        return script.drawn

    return write_answers


def likeliest(token: int) -> list[float]:
    return [float(each == token) for each in range(10)]


def refusing() -> None:
    raise ValueError("no grammar")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"prompt": [1, 2, 3]}, "AttributeError"), ({"new_guide": refusing}, "ValueError: no grammar")],
    ids=["prompt", "guide"],
)
def test_a_job_that_cannot_be_made_ready_fails_alone(write, change, message):
    bad, good = Told(), Told()
    outcomes = Outcomes()
    # The good one's is the only row: its two tokens are an e and the end.
    assert write([bad.job(**change), good.job()], [[likeliest(4)], [likeliest(2)]], outcomes) == [[4]]
    assert [type(event) for event in bad] == [Failure]
    assert message in bad[0].message
    assert good == [Piece("e"), End("stop", 2)]
    assert outcomes.counts == {"failed": 1, "answered": 1, "tokens": 2}


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([math.nan] * 10, "ValueError: the model's scores are not numbers"),
        ([0.0, math.inf, *[0.0] * 8], "ValueError: the model's scores are not numbers"),
        ([-math.inf] * 10, "ValueError: the model's scores are not numbers"),
        (likeliest(9), "ValueError: nine is no letter"),
    ],
    ids=["nan", "inf", "nothing possible", "no text"],
)
@pytest.mark.parametrize("temperature", [0.0, 1e-3])
def test_a_row_that_fails_on_its_way_fails_alone(write, scores, message, temperature):
    bad, good = Told(), Told()
    outcomes = Outcomes()
    jobs = [bad.job(temperature=temperature, prompt=np.array([2])), good.job(temperature=temperature)]
    drawn = write(jobs, [[likeliest(3), likeliest(3)], [scores, likeliest(4)], [scores, likeliest(5)]], outcomes)
    assert bad == [Piece("d"), Failure(message)]
    assert good == [Piece("d"), Piece("e"), Piece("f"), End("length", 3)]
    assert drawn == [[3], [3, 4]]
    assert outcomes.counts["failed"] == outcomes.counts["answered"] == 1


def test_a_listener_that_is_gone_takes_nobody_with_it(write):
    def closed(event):
        raise RuntimeError("Event loop is closed")

    good = Told()
    outcomes = Outcomes()
    write([Told().job(deliver=closed, prompt=np.array([2])), good.job()], [[likeliest(3)] * 2] * 3, outcomes)
    assert good == [Piece("d")] * 3 + [End("length", 3)]
    assert outcomes.counts == {"failed": 1, "answered": 1, "tokens": 4}


def test_a_row_whose_end_is_delivered_is_not_counted_as_running(monkeypatch):
    """Of three rows one answers, one fails on its way, and the last fails with its batch."""
    running: list[tuple[str, int]] = []
    batch = Batch(Outcomes())
    script = Script([[likeliest(3)] * 3, [likeliest(3), [math.nan] * 10, likeliest(3)]])
    monkeypatch.setattr("penchant.serving.batch.read_joinable", lambda model, prompts: script)

    def record(event: Event) -> None:
        running.append((type(event).__name__, len(batch)))

    jobs = [Told().job(deliver=record, prompt=np.array([row]), max_tokens=1 + row) for row in range(3)]
    batch.add(jobs, EXPERT)
    batch.step()
    assert running == [("Piece", 3), ("End", 2), ("Piece", 2), ("Piece", 2)]
    batch.step()
    assert running[4:] == [("Failure", 1), ("Piece", 1)]
    batch.fail(Failure("no memory"))
    assert running[6:] == [("Failure", 0)]


def test_who_is_cancelled_leaves_before_the_next_token_and_is_counted_once(monkeypatch):
    events, good = Told(), Told()
    outcomes = Outcomes()
    job, batch, script = events.job(), Batch(outcomes), Script([[likeliest(3)] * 2] * 3)
    monkeypatch.setattr("penchant.serving.batch.read_joinable", lambda model, prompts: script)
    batch.add([job, good.job(prompt=np.array([2]))], EXPERT)
    batch.step()
    job.cancelled.set()
    batch.step()
    assert (len(batch), script.rows) == (1, [1])
    outcomes.end(job, Failure("too late"))
    assert events == [Piece("d")]
    assert outcomes.counts == {"cancelled": 1, "tokens": 3}


def test_whose_time_is_over_leaves_before_the_next_token(monkeypatch):
    late, good = Told(), Told()
    outcomes = Outcomes()
    job, batch, script = late.job(deadline=math.inf), Batch(outcomes), Script([[likeliest(3)] * 2] * 3)
    monkeypatch.setattr("penchant.serving.batch.read_joinable", lambda model, prompts: script)
    batch.add([job, good.job(prompt=np.array([2]))], EXPERT)
    batch.step()
    job.deadline = 0.0
    batch.step()
    assert (len(batch), script.rows) == (1, [1])
    assert late == [Piece("d"), Failure("it took too long", timed_out=True)]


def test_a_guide_decides_what_may_come_next(write):
    """The likeliest token is d; the guide lets no d through, and the log-probs events are the model's own."""

    class Guide:
        def __init__(self) -> None:
            self.prefixes: list[list[int]] = []

        def allowed(self, tokens):
            self.prefixes.append(list(tokens))
            return np.array([1, 2 + 3 * (len(tokens) < 2)])

    guides: list[Guide] = []

    def new_guide() -> Guide:
        guides.append(Guide())
        return guides[-1]

    guided, free = Told(), Told()
    scores = [[float(token == 3) * 2 + float(token == 5) for token in range(10)]] * 2
    held_job = guided.job(new_guide=new_guide, top_log_probs=2, prompt=np.array([2]))
    write([held_job, free.job()], [scores] * 3, Outcomes())
    total = math.log(math.exp(2) + math.exp(1) + 8)
    first = guided[0].log_probs[0]
    assert (first.text, first.log_prob) == ("f", pytest.approx(1 - total))
    assert first.top == (("d", pytest.approx(2 - total)), ("f", pytest.approx(1 - total)))
    assert [piece.text for piece in guided[:-1]] == ["f", "f", "b"]
    assert guides[0].prefixes == [[], [5], [5, 5]]
    assert free == [Piece("d")] * 3 + [End("length", 3)]


def test_the_answers_to_one_request_draw_for_themselves(tiny_model):
    """The first draws as an answer alone does, the others by the seed and their number."""
    experts = Experts({"one": str(tiny_model)})
    prompt = np.array(experts.peek("one").tokenizer("the old cat").input_ids)

    def texts(indices: list[int], seed: int) -> list[str]:
        records = [Told() for _ in indices]
        batch = Batch(Outcomes())
        jobs = [
            record.job(prompt=prompt, max_tokens=12, temperature=1.0, seed=seed, index=index)
            for record, index in zip(records, indices, strict=True)
        ]
        batch.add(jobs, experts.get("one"))
        while len(batch):
            batch.step()
        return ["".join(event.text for event in record[:-1]) for record in records]

    together = texts([0, 1, 2, 3], 5)
    assert len(set(together)) == 4
    assert together == [texts([index], 5)[0] for index in range(4)]
    assert set(together).isdisjoint(texts([1, 2, 3], 6))


def test_any_seed_and_any_temperature_in_one_batch(tiny_model):
    """Each as it is alone; of a seed its remainder by 2**64 counts, and a temperature of nearly 0 is 0."""
    experts = Experts({"one": str(tiny_model)})
    prompt = np.array(experts.peek("one").tokenizer("the old cat").input_ids)

    def said(*settings: tuple[int, float]) -> list[str]:
        worker = Worker(experts, batch=8, waiting=8)
        hold = worker.call(lambda: time.sleep(0.1))
        found: list[queue.Queue] = [queue.Queue() for _ in settings]
        for (seed, temperature), events in zip(settings, found, strict=True):
            deadline = time.monotonic() + 30
            worker.submit(Job("one", prompt, 12, temperature, 1.0, (), seed, deadline, events.put))
        hold.result(timeout=5)
        texts = []
        for events in found:
            text = ""
            while isinstance(event := events.get(timeout=30), Piece):
                text += event.text
            assert isinstance(event, End), event
            texts.append(text)
        worker.stop()
        return texts

    below, above, one_more, usual, cold, colder, coldest = said(
        (-1, 1.0), (2**64 - 1, 1.0), (2**64 + 5, 1.0), (5, 1.0), (-7, 1e-310), (7, 9e-7), (7, 0.0)
    )
    assert below == above
    assert one_more == usual != below
    assert cold == colder == coldest
    assert [usual, coldest] == [*said((5, 1.0)), *said((0, 0.0))]
