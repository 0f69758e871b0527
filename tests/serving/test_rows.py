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

from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Failure, Job, Outcomes, Piece
from penchant.serving.rows import Rows
from penchant.serving.worker import Worker


def decode(prompt, tokens):
    if 9 in tokens:
        raise ValueError("nine is no letter")
    return "".join("abcdefghi"[token] for token in tokens)


EXPERT = SimpleNamespace(ends={2}, decode=decode)


class Told(list):
    """A job's events, in order."""

    def job(self, **changes: object) -> Job:
        deadline = time.monotonic() + 30
        return replace(Job("a", np.array([1]), 3, 0.0, 1.0, (), 0, deadline, self.append), **changes)


def written(rows: Rows, steps: list[list[list[float]]]) -> list[list[int]]:
    """What the rows draw from each step's scores, until all have ended."""
    ids = torch.zeros(len(rows), 1, dtype=torch.int64)
    for scores in steps:
        drawn = rows.draw(ids, torch.tensor(scores))
        assert torch.isfinite(drawn).sum(1).tolist() == [1] * len(rows)
        ids = torch.cat([ids, drawn.argmax(1)[:, None]], 1)
        if rows.watch(ids, None).all():
            break
    return ids[:, 1:].tolist()


def likeliest(token: int) -> list[float]:
    return [float(each == token) for each in range(10)]


def test_a_job_that_cannot_be_made_ready_fails_alone():
    bad, good = Told(), Told()
    outcomes = Outcomes()
    rows = Rows([bad.job(prompt=[1, 2, 3]), good.job()], EXPERT, outcomes)
    assert [type(each) for each in bad] == [Failure]
    assert "TypeError" in bad[0].message
    assert [each.tolist() for each in rows.prompts()] == [[[1]], [[1]]]
    assert written(rows, [[likeliest(4)], [likeliest(2)]]) == [[4, 2]]
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
def test_a_row_that_fails_on_its_way_fails_alone(scores, message, temperature):
    bad, good = Told(), Told()
    outcomes = Outcomes()
    rows = Rows([bad.job(temperature=temperature), good.job(temperature=temperature)], EXPERT, outcomes)
    drawn = written(rows, [[likeliest(3), likeliest(3)], [scores, likeliest(4)], [scores, likeliest(5)]])
    assert bad == [Piece("d"), Failure(message)]
    assert good == [Piece("d"), Piece("e"), Piece("f"), End("length", 3)]
    assert drawn[1] == [3, 4, 5]
    assert outcomes.counts["failed"] == outcomes.counts["answered"] == 1


def test_a_listener_that_is_gone_takes_nobody_with_it():
    def closed(event):
        raise RuntimeError("Event loop is closed")

    good = Told()
    outcomes = Outcomes()
    rows = Rows([Told().job(deliver=closed), good.job()], EXPERT, outcomes)
    written(rows, [[likeliest(3)] * 2] * 3)
    assert good == [Piece("d")] * 3 + [End("length", 3)]
    assert outcomes.counts == {"failed": 1, "answered": 1, "tokens": 4}


def test_who_is_cancelled_is_counted_once():
    told = Told()
    outcomes = Outcomes()
    job = told.job()
    rows = Rows([job], EXPERT, outcomes)
    job.cancelled.set()
    written(rows, [[likeliest(3)]] * 3)
    outcomes.end(job, Failure("too late"))
    assert told == []
    assert outcomes.counts == {"cancelled": 1, "tokens": 1}


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
