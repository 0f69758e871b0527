"""Jobs' events on their way to the client: gathered into one document, or streamed as they come."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol

from fastapi import Request

from penchant.serving.jobs import End, Event, Failure, Job, Piece
from penchant.serving.refusals import Refusal

LISTENING_SECONDS = 0.5
"""How often a silent answer looks whether its client is still there."""


class Form(Protocol):
    """How an answer is written by its protocol."""

    includes_usage: bool

    def opening(self) -> list[dict[str, Any]]:
        """A stream's first parts."""

    def add(self, index: int, piece: Piece) -> list[dict[str, Any]]:
        """Take in a piece of a choice's answer, and give the parts of a stream that it makes."""

    def end(self, index: int, end: End) -> list[dict[str, Any]]:
        """Take in a choice's end, and give the parts of a stream that it makes."""

    def usage_chunk(self) -> dict[str, Any]:
        """The last part of a stream whose client asks for usage."""

    def document(self) -> dict[str, Any]:
        """The answer in one document."""


class Mailbox:
    """The events of one request's jobs, put in by the thread of the models and taken out by the event loop.

    The loop is woken once for all that has come since it last looked.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._events = loop, list[tuple[int, Event]]()
        self._lock, self._filled = threading.Lock(), asyncio.Event()

    def slot(self, index: int) -> Callable[[Event], None]:
        """What a job's events are delivered to, from any thread."""

        def deliver(event: Event) -> None:
            with self._lock:
                is_first = not self._events
                self._events.append((index, event))
            if is_first:
                self._loop.call_soon_threadsafe(self._filled.set)

        return deliver

    async def take(self) -> list[tuple[int, Event]]:
        """All that has come, with the index of each event's job; at least one."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        with self._lock:
            events = list(self._events)
            self._events.clear()
        return events


def timed_out(message: str) -> Refusal:
    """An answer that did not come in time."""
    return Refusal(504, "timeout", message, code="timeout")


async def whole_answer(form: Form, jobs: Sequence[Job], mailbox: Mailbox, request: Request) -> dict[str, Any]:
    """The answer in one document.

    Raises:
        Refusal: a job failed, or the client has gone.
    """
    writing = len(jobs)
    try:
        while writing:
            try:
                events = await asyncio.wait_for(mailbox.take(), LISTENING_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal(499, "cancelled", "the client has gone") from None
                continue
            for index, event in events:
                _parts(form, index, event)
                writing -= isinstance(event, End)
        return form.document()
    finally:
        _cancel(jobs)


async def stream_answer(form: Form, jobs: Sequence[Job], mailbox: Mailbox) -> AsyncIterator[str]:
    """The answer as server-sent events; a failure is the last of them."""
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
        # Also where the client has gone: the rows then leave before their next token.
        _cancel(jobs)


def _parts(form: Form, index: int, event: Event) -> list[dict[str, Any]]:
    """The parts of a stream that an event makes.

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
