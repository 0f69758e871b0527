"""Checks of a request before it is parsed: access, size of the body, and time to receive it."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.serving.access import Access
from penchant.serving.limits import Limits
from penchant.serving.refusals import Refusal, invalid

OPEN_PATHS = frozenset({"/health"})
"""Paths without access control, for health checks."""


class AccessGuard:
    """ASGI middleware that refuses requests without access."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refusal = self._access.refusal(Headers(scope=scope))
            if refusal is not None:
                await _refuse(refusal, scope, receive, send)
                return
        await self._app(scope, receive, send)


class BodyGuard:
    """ASGI middleware that reads the whole body and refuses one that is too large or arrives too late."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._limits.read_timeout_s)
        except TimeoutError:
            late = invalid("the request's body did not come in time", code="request_timeout", status=408)
            await _refuse(late, scope, receive, send)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
        else:
            await self._app(scope, _Replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        """The whole body; one that is too large is read to its end too, because clients read the answer only then."""
        parts, size, has_more = [], 0, True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise invalid("the client has disconnected", code="cancelled", status=499)
            part = message.get("body", b"")
            has_more = message.get("more_body", False)
            size += len(part)
            if size <= self._limits.max_body_bytes:
                parts.append(part)
            else:
                parts.clear()
        if size > self._limits.max_body_bytes:
            raise invalid(
                f"the request has {size} bytes; at most {self._limits.max_body_bytes} are read",
                code="request_too_large",
                status=413,
            )
        return b"".join(parts)


class _Replay:
    """An ASGI receive function that returns the body already read, and then the client's disconnect."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body_message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._body_message = self._body_message, None
        return message if message is not None else await self._receive()


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"connection": "close", **({"www-authenticate": "Bearer"} if refusal.status == 401 else {})}
    await JSONResponse(refusal.body, refusal.status, headers)(scope, receive, send)
