"""A job's events on their way to the client: gathered into one document, or streamed as they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from penchant.serving.answers import ChatAnswer
from penchant.serving.jobs import Event, Failure, Job, Piece
from penchant.serving.refusals import Refusal

LISTENING_SECONDS = 0.5
"""How often a silent answer looks whether its client is still there."""


def timed_out(message: str) -> Refusal:
    """An answer that did not come in time."""
    return Refusal(504, "timeout", message, code="timeout")


async def whole_answer(answer: ChatAnswer, job: Job, events: asyncio.Queue[Event], request: Request) -> dict[str, Any]:
    """The answer in one document.

    Raises:
        Refusal: the job failed, or the client has gone.
    """
    text = ""
    try:
        while True:
            try:
                event = await asyncio.wait_for(events.get(), LISTENING_SECONDS)
            except TimeoutError:
                if await request.is_disconnected():
                    raise Refusal(499, "cancelled", "the client has gone") from None
                continue
            if isinstance(event, Piece):
                text += event.text
            elif isinstance(event, Failure):
                raise _refusal(event)
            else:
                return answer.document(text, event)
    finally:
        job.cancelled.set()


async def stream_answer(answer: ChatAnswer, job: Job, events: asyncio.Queue[Event]) -> AsyncIterator[str]:
    """The answer as server-sent events; a failure is the last of them."""
    try:
        yield _line(answer.chunk({"role": "assistant", "content": ""}))
        while True:
            event = await events.get()
            if isinstance(event, Piece):
                yield _line(answer.chunk({"content": event.text}))
                continue
            if isinstance(event, Failure):
                yield _line(_refusal(event).body)
                return
            yield _line(answer.chunk({}, event.reason))
            if answer.includes_usage:
                yield _line(answer.usage_chunk(event.tokens))
            yield "data: [DONE]\n\n"
            return
    finally:
        # Also where the client has gone: the row then ends with its next token.
        job.cancelled.set()


def _line(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _refusal(failure: Failure) -> Refusal:
    if failure.timed_out:
        return timed_out(failure.message)
    return Refusal(500, "server_error", failure.message)
