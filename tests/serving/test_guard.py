"""Bodies that are too large or too slow, and connections without headers."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from penchant.errors import ConfigError
from penchant.serving.access import BodyGuard, Limits
from penchant.serving.run import timed_protocol


def echo(**limits: float) -> FastAPI:
    """An application that answers with the number of bytes of the body."""
    app = FastAPI()
    app.add_middleware(BodyGuard, limits=Limits(**limits))

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await request.body())

    return app


def test_a_body_above_the_limit_is_refused() -> None:
    with TestClient(echo(max_body_bytes=1000)) as client:
        assert client.post("/", content=b"a" * 1000).json() == 1000
        for content in (b"a" * 1001, iter([b"a" * 600] * 3)):
            answer = client.post("/", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
        assert "1800 bytes; at most 1000" in answer.json()["error"]["message"]


def test_a_late_body_is_refused() -> None:
    sent_messages: list[dict] = []

    async def receive() -> dict:
        await asyncio.sleep(30)
        raise AssertionError("nobody waits that long")

    async def send(message: dict) -> None:
        sent_messages.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
    asyncio.run(BodyGuard(echo(), Limits(read_timeout_s=0.05))(scope, receive, send))
    assert sent_messages[0]["status"] == 408
    assert (b"connection", b"close") in sent_messages[0]["headers"]
    assert json.loads(sent_messages[1]["body"])["error"]["code"] == "request_timeout"


@contextmanager
def listening(seconds: float, wait_until: Callable[..., None]) -> Iterator[int]:
    """The port of a server with this time-out for headers."""
    config = uvicorn.Config(echo(), port=0, log_level="error", http=timed_protocol(seconds), ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)


def receive_until(connection: socket.socket, end: bytes) -> bytes:
    """The bytes received up to an end mark, or until the connection closes."""
    data = b""
    while not data.endswith(end) and (part := connection.recv(4096)):
        data += part
    return data


@pytest.fixture(scope="module")
def port(wait_until: Callable[..., None]) -> Iterator[int]:
    with listening(0.4, wait_until) as number:
        yield number


@pytest.mark.parametrize("beginning", [b"", b"POST / HTTP/1.1\r\nhost: a\r\n"], ids=["nothing", "half of the headers"])
def test_a_connection_without_headers_is_closed(port: int, beginning: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(beginning)
        assert receive_until(connection, b"never").startswith(b"HTTP/1.1 408 ")


def test_each_request_of_a_connection_has_its_own_time_out(port: int) -> None:
    """Headers in time are answered, also after a pause between requests; the next ones, which are late, are not."""
    request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(2):
            connection.sendall(request)
            assert receive_until(connection, b"\r\n\r\n3").startswith(b"HTTP/1.1 200 ")
            time.sleep(0.6)
        connection.sendall(request[:20])
        assert receive_until(connection, b"never").startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("name", ["timeout_s", "read_timeout_s"])
@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_invalid_time_outs(name: str, seconds: float) -> None:
    with pytest.raises(ConfigError) as error:
        Limits(**{name: seconds})
    assert error.value.where == "--" + name.replace("_", "-")
