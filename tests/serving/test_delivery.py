"""Delivery of events from the thread of the models to the event loop."""

from __future__ import annotations

import asyncio
import random
import threading
import time

from penchant.serving.delivery import Mailbox
from penchant.serving.jobs import End, Piece


def test_no_event_is_lost_and_events_of_a_job_keep_their_order() -> None:
    """Four threads put in 500 events each while the loop takes them out."""

    async def collect() -> list[tuple[int, object]]:
        mailbox = Mailbox(asyncio.get_running_loop())

        def fill(index: int) -> None:
            deliver, draw = mailbox.slot(index), random.Random(index)
            for number in range(499):
                deliver(Piece(str(number)))
                if draw.random() < 0.1:
                    time.sleep(0.0005)
            deliver(End("stop", 499))

        threads = [threading.Thread(target=fill, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        events: list[tuple[int, object]] = []
        while sum(isinstance(event, End) for _, event in events) < 4:
            batch = await asyncio.wait_for(mailbox.take(), 10)
            assert batch
            events += batch
        for thread in threads:
            thread.join()
        return events

    events = asyncio.run(collect())
    for index in range(4):
        expected = [*(Piece(str(number)) for number in range(499)), End("stop", 499)]
        assert [event for owner, event in events if owner == index] == expected


def test_a_cancelled_wait_loses_no_event() -> None:
    async def take_twice() -> list[tuple[int, object]]:
        mailbox = Mailbox(asyncio.get_running_loop())
        try:
            await asyncio.wait_for(mailbox.take(), 0.01)
        except TimeoutError:
            mailbox.slot(3)(Piece("a"))
            return await asyncio.wait_for(mailbox.take(), 10)
        raise AssertionError("there was nothing to take")

    assert asyncio.run(take_twice()) == [(3, Piece("a"))]
