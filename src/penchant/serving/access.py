"""Checks before a request is parsed: the API key, a `Host` that belongs to the server, size, time and limits.

A web page can point a host name of its own at this machine and send requests under that name ("DNS rebinding"). So the
`Host` of a request must be an address, which no page can claim, or one of the server's names.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penchant.errors import ConfigError
from penchant.serving.requests import Refusal, invalid


@dataclass(frozen=True)
class Limits:
    """Limits on the requests to the server.

    Attributes:
        batch: maximum number of rows generated together.
        waiting: maximum number of waiting requests; further ones are refused.
        max_tokens: maximum number of tokens of an answer, and the default where the client names none.
        timeout_s: seconds from a request to the end of its answer.
        read_timeout_s: seconds for receiving a request's headers, and as many for its body.
        max_body_bytes: maximum size of a request's body; a larger one is refused with 413.

    Raises:
        ConfigError: a time-out is not above 0, or is not finite.
    """

    batch: int = 32
    waiting: int = 256
    max_tokens: int = 512
    timeout_s: float = 120.0
    read_timeout_s: float = 30.0
    max_body_bytes: int = 4 * 2**20

    def __post_init__(self) -> None:
        for name in ("timeout_s", "read_timeout_s"):
            seconds = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            if not (math.isfinite(seconds) and seconds > 0):
                raise ConfigError(
                    f"{seconds:g} is not a time-out; expected more than 0 s", where=flag, fix=f"{flag} 60"
                )


LOCALHOST = "localhost"
ANY_HOST = "*"


@dataclass(frozen=True)
class Access:
    """The conditions for access to the server.

    Attributes:
        api_key: key that clients send as a bearer token; None where no key is needed.
        hosts: accepted host names, in addition to addresses and localhost; "*" accepts any.
    """

    api_key: str | None
    hosts: frozenset[str]

    @classmethod
    def for_host(cls, host: str, api_key: str | None, allowed_hosts: Iterable[str] = ()) -> Access:
        """The access to a server that listens at a host.

        Args:
            host: name or address at which the server listens.
            api_key: key of the clients; None for no key.
            allowed_hosts: further accepted host names.

        Raises:
            ConfigError: other machines can reach the server and there is no key, or no header can carry the key.
        """
        if api_key is None and not is_loopback(host):
            raise ConfigError(
                "other machines can reach this address, and no key is required",
                where=f"--host {host}",
                fix="set PENCHANT_API_KEY (or --api-key, which other users see in the list of processes), "
                "or --host 127.0.0.1",
            )
        if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
            raise ConfigError(
                "the key is empty, or holds characters that no header can carry",
                where="--api-key or PENCHANT_API_KEY",
                fix="a key of letters and digits: openssl rand -hex 32",
            )
        return cls(api_key, frozenset(name.lower() for name in (LOCALHOST, host, *allowed_hosts)))

    def refusal(self, headers: Mapping[str, str]) -> Refusal | None:
        """The reason to refuse a request with these headers (names in lower case); None where it is accepted."""
        host = headers.get("host")
        if host is not None and not self._knows(host_name(host)):
            return invalid(
                f"this server is not known as '{host_name(host)}'; if it should be: --allowed-host",
                code="host_not_allowed",
                status=403,
            )
        if self.api_key is not None and not _same_key(_bearer_token(headers), self.api_key):
            return Refusal(
                401, "authentication_error", "a valid key is needed: Authorization: Bearer KEY", code="invalid_api_key"
            )
        return None

    def _knows(self, name: str) -> bool:
        return _is_address(name) or name in self.hosts or ANY_HOST in self.hosts


def is_loopback(host: str) -> bool:
    """Whether a server at this host is reachable from this machine only; the only such name is localhost."""
    return host.lower() == LOCALHOST or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def host_name(header: str) -> str:
    """The name or address of a `Host` header without its port, in lower case."""
    name, colon, port = header.strip().lower().rpartition(":")
    if not colon or not (port.isdigit() or not port):
        name = header.strip().lower()
    return name.removeprefix("[").removesuffix("]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bearer_token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _same_key(token: str, key: str) -> bool:
    """Whether token and key are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (token, key)))


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
