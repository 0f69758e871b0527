"""Delivery of jobs' events to the client: collected into one document, or streamed as they arrive."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from fastapi import Request

from penchant.serving.jobs import End, Event, Failure, Job, Piece
from penchant.serving.requests import Refusal

LISTENING_SECONDS = 0.5
"""Seconds between two checks whether the client of an answer without events is still connected."""


class Form(Protocol):
    """The protocol's form of an answer."""

    includes_usage: bool

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks of a stream."""

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece of a choice's answer; the result is the stream's chunks for it."""

    def end(self, index: int, end: End) -> list[dict[str, Any]]:
        """End a choice's answer; the result is the stream's chunks for it."""

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream whose client asks for usage."""

    def document(self) -> dict[str, Any]:
        """The answer as one document."""


class Mailbox:
    """A queue of the events of one request's jobs, from the thread of the models to the event loop.

    The event loop is woken once for all events since its last look.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._events = loop, list[tuple[int, Event]]()
        self._lock, self._filled = threading.Lock(), asyncio.Event()

    def slot(self, index: int) -> Callable[[Event], None]:
        """A function that puts an event of one job into the queue, from any thread."""

        def deliver(event: Event) -> None:
            with self._lock:
                is_first = not self._events
                self._events.append((index, event))
            if is_first:
                self._loop.call_soon_threadsafe(self._filled.set)

        return deliver

    async def take(self) -> list[tuple[int, Event]]:
        """All queued events with the index of their job, at least one; waits where there is none."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events


def timed_out(message: str) -> Refusal:
    """The refusal for an answer that was not ready in time."""
    return Refusal(504, "timeout", message, code="timeout")


async def whole_answer(form: Form, jobs: Sequence[Job], mailbox: Mailbox, request: Request) -> dict[str, Any]:
    """The answer as one document.

    Raises:
        Refusal: a job failed, or the client has disconnected.
    """
    writing = len(jobs)
    try:
        while writing:
            try:
                events = await asyncio.wait_for(mailbox.take(), LISTENING_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal(499, "cancelled", "the client has disconnected") from None
                continue
            for index, event in events:
                _parts(form, index, event)
                writing -= isinstance(event, End)
        return form.document()
    finally:
        _cancel(jobs)


async def stream_answer(form: Form, jobs: Sequence[Job], mailbox: Mailbox) -> AsyncIterator[str]:
    """The answer as server-sent events; a failure is the last event."""
    writing = len(jobs)
    try:
        if opening := form.opening():
            yield "".join(map(_line, opening))
        while writing:
            parts: list[dict[str, Any]] = []
            for index, event in await mailbox.take():
                parts += _parts(form, index, event)
                writing -= isinstance(event, End)
            if parts:
                yield "".join(map(_line, parts))
        if form.includes_usage:
            yield _line(form.usage_chunk())
        yield "data: [DONE]\n\n"
    except Refusal as refusal:
        yield _line(refusal.body)
    finally:
        # Also where the client has disconnected: its rows then leave the batch before their next token.
        _cancel(jobs)


def _parts(form: Form, index: int, event: Event) -> list[dict[str, Any]]:
    """The chunks of a stream for an event.

    Raises:
        Refusal: the job failed.
    """
    match event:
        case Piece():
            return form.add(index, event)
        case End():
            return form.end(index, event)
        case Failure(message, timed_out=True):
            raise timed_out(message)
        case Failure(message):
            raise Refusal(500, "server_error", message)


def _cancel(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.cancelled.set()


def _line(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
