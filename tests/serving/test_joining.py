"""A request joins those at work at the next token, and each is answered as it would be alone."""

from __future__ import annotations

import queue
import random
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from penchant.serving.batch import Batch
from penchant.serving.experts import Experts
from penchant.serving.jobs import End, Event, Job, Outcomes, Piece
from penchant.serving.worker import Worker


@pytest.fixture(scope="module")
def experts(tiny_model) -> Experts:
    return Experts({"m": str(tiny_model)})


@dataclass
class Request:
    """A request's settings, and its events once it is a job."""

    prompt: list[int]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    events: list[Event] = field(default_factory=list)

    def job(self) -> Job:
        settings = (self.max_tokens, self.temperature, self.top_p, (), self.seed)
        return Job("m", np.array(self.prompt), *settings, time.monotonic() + 60, self.events.append)

    @property
    def answer(self) -> tuple[str, Event]:
        return "".join(piece.text for piece in self.events[:-1] if isinstance(piece, Piece)), self.events[-1]


def finish(batch: Batch) -> None:
    while len(batch):
        batch.step()


def answered_alone(request: Request, experts: Experts) -> tuple[str, Event]:
    twin = Request(request.prompt, request.max_tokens, request.temperature, request.top_p, request.seed)
    batch = Batch(Outcomes())
    batch.add([twin.job()], experts.get("m"))
    finish(batch)
    return twin.answer


def test_one_token_does_not_wait_for_a_long_answer(experts) -> None:
    long, short = Request([1, 5, 9], 40), Request([1, 7], 1)
    batch = Batch(Outcomes())
    batch.add([long.job()], experts.get("m"))
    for _ in range(3):
        batch.step()
    batch.add([short.job()], experts.get("m"))
    batch.step()
    assert isinstance(short.events[-1], End)
    assert len(batch) == 1
    finish(batch)
    for request in (long, short):
        assert request.answer == answered_alone(request, experts)


def test_whoever_joins_whenever_is_answered_as_alone(experts) -> None:
    """Sixteen requests of 1 to 30 tokens of prompt and 1 to 40 of answer, greedy and drawn, join at random times."""
    draw = random.Random(0)
    requests = [
        Request(
            [1, *(draw.randrange(4, 24) for _ in range(draw.randrange(30)))],
            draw.randrange(1, 41),
            temperature=draw.choice([0.0, 0.7, 1.5]),
            top_p=draw.choice([1.0, 0.8]),
            seed=draw.randrange(100),
        )
        for _ in range(16)
    ]
    batch, waiting, sizes = Batch(Outcomes()), list(requests), []
    while waiting or len(batch):
        joining = [waiting.pop() for _ in range(min(draw.randrange(4), len(waiting)))]
        if joining:
            batch.add([request.job() for request in joining], experts.get("m"))
        for _ in range(draw.randrange(1, 6)):
            batch.step()
        sizes.append(len(batch))
    assert max(sizes) >= 5
    for request in requests:
        assert request.answer == answered_alone(request, experts)


def test_a_prompt_of_several_answers_is_read_once_beside_others(experts) -> None:
    """Its rows and those of others stand each on their own prompt."""
    prompts = ([1, 5, 9], [1, 7], [1, 5, 9], [1, 12, 6, 4])
    requests = [Request(prompt, 6) for prompt in prompts]
    batch = Batch(Outcomes())
    batch.add([request.job() for request in requests], experts.get("m"))
    finish(batch)
    assert len({request.answer for request in requests}) == 3
    for request in requests:
        assert request.answer == answered_alone(request, experts)


def test_rows_use_the_models_whole_context_side_by_side(tiny_model, tmp_path) -> None:
    """A long prompt and a long answer, of a model with 24 learned positions: neither takes places from the other."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=24, n_positions=24, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    experts = Experts({"m": str(tmp_path)})
    requests = [Request([1, *range(4, 23)], 4), Request([1], 23), Request([1, 5], 22, temperature=1.0, seed=3)]
    batch = Batch(Outcomes())
    batch.add([request.job() for request in requests[:2]], experts.get("m"))
    batch.step()
    batch.add([requests[2].job()], experts.get("m"))
    finish(batch)
    assert [request.events[-1] for request in requests] == [End("length", tokens) for tokens in (4, 23, 22)]
    for request in requests:
        assert request.answer == answered_alone(request, experts)


def test_the_worker_lets_a_request_join(experts) -> None:
    """The long answer ends after the short one, which came when it had begun."""
    ends: queue.Queue = queue.Queue()
    begun: queue.Queue = queue.Queue()

    def job(name: str, max_tokens: int) -> Job:
        def deliver(event: Event) -> None:
            (begun if isinstance(event, Piece) else ends).put(name)

        return Job("m", np.array([1, 5, 9]), max_tokens, 0.0, 1.0, (), 0, time.monotonic() + 60, deliver)

    worker = Worker(experts, batch=4, waiting=4)
    worker.submit(job("long", 120))
    assert begun.get(timeout=30) == "long"
    worker.submit(job("short", 1))
    assert [ends.get(timeout=30), ends.get(timeout=30)] == ["short", "long"]
    worker.stop()


def test_no_more_rows_write_together_than_may(experts, monkeypatch) -> None:
    """Nor are more tokens of new prompts read at once than `READ_TOKENS`, but for one prompt that has more."""
    monkeypatch.setattr("penchant.serving.worker.READ_TOKENS", 10)
    sizes: list[list[int]] = []
    running: list[int] = []
    events: queue.Queue = queue.Queue()
    add, step = Batch.add, Batch.step
    monkeypatch.setattr(
        Batch,
        "add",
        lambda batch, jobs, expert: (sizes.append([len(job.prompt) for job in jobs]), add(batch, jobs, expert)),
    )
    monkeypatch.setattr(Batch, "step", lambda batch: (running.append(len(batch)), step(batch)))
    worker = Worker(experts, batch=3, waiting=20)
    go = threading.Event()
    hold = worker.call(lambda: go.wait(10))
    for length in (2, 3, 4, 5, 12, 1):
        prompt = np.array([1, *[5] * (length - 1)])
        worker.submit(Job("m", prompt, 8, 0.0, 1.0, (), 0, time.monotonic() + 60, events.put))
    go.set()
    assert hold.result(timeout=10)
    ended = 0
    while ended < 6:
        ended += isinstance(events.get(timeout=30), End)
    worker.stop()
    assert [length for lengths in sizes for length in lengths] == [2, 3, 4, 5, 12, 1]
    # 2 and 3 are 6 tokens with their padding; 4 beside them would make 12.
    assert sizes[:2] == [[2, 3], [4]]
    assert all(len(lengths) * max(lengths) <= 10 or len(lengths) == 1 for lengths in sizes)
    assert max(running) == 3
