"""Start of a server from folders of models; a connection has a time limit for a request's headers."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from penchant.errors import ConfigError, require_extra
from penchant.serving.access import Limits
from penchant.serving.experts import Experts
from penchant.serving.router import ROUTER, Router, load_router

if TYPE_CHECKING:
    from penchant.serving.access import Access
    from penchant.serving.learning import Learning

TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol class with a time-out for headers, in seconds; without it a connection may stay open."""

    class TimedProtocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_headers()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_timer()

        def _watch_headers(self) -> None:
            """Run the timer while headers are expected; between requests uvicorn's keep-alive time-out applies."""
            if self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._header_timer is None:
                self._header_timer = self.loop.call_later(seconds, self._time_out)

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _time_out(self) -> None:
            if not self.transport.is_closing():
                self.transport.write(TIMED_OUT)
                self.transport.close()

    return TimedProtocol


def find_experts(sources: Sequence[str]) -> tuple[dict[str, str], Router | None]:
    """The folder of each expert by name, and the router; None where there is no router.

    Args:
        sources: folders of models, as FOLDER or NAME=FOLDER; or one folder of the domain-expert recipe, which contains
            a router and its experts.

    Raises:
        ConfigError: two models have the same name, or a name is reserved.
    """
    if len(sources) == 1 and (Path(sources[0]) / "router" / ROUTER).exists():
        folder = Path(sources[0])
        router = load_router(folder / "router")
        return {name: str(folder / name / "run") for name in router.names}, router
    folders: dict[str, str] = {}
    for source in sources:
        name, equals, folder_name = source.partition("=")
        if not equals:
            name, folder_name = Path(source).resolve().name, source
        if name in folders or name == "router" or not name:
            raise ConfigError(f"'{name}' cannot be this model's name", where=source, fix="name it: NAME=FOLDER")
        folders[name] = folder_name
    return folders, None


def serve(
    folders: Mapping[str, str],
    router: Router | None,
    limits: Limits,
    access: Access,
    *,
    host: str,
    port: int,
    learning: Learning | None = None,
) -> None:
    """Load the models and serve until SIGTERM or Ctrl-C, after which running answers are completed.

    Args:
        folders: folder of each expert by name.
        router: chooses the expert of a request; None where there is none.
        limits: limits on requests.
        access: conditions for access.
        host: name or address to listen at.
        port: port to listen at.
        learning: learns from the answers of one expert; None where nothing does.

    Raises:
        ConfigError: the libraries are not installed.
        ModelError: a model cannot be loaded.
    """
    with require_extra("serve", "serving needs FastAPI and uvicorn"):
        import uvicorn

        from penchant.serving.app import build_app
    _check_address(host, port)
    app = build_app(Experts(folders), router, limits, access, learning)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        http=timed_protocol(limits.read_timeout_s),
        ws="none",
        timeout_graceful_shutdown=math.ceil(limits.timeout_s),
    )


def _check_address(host: str, port: int) -> None:
    """Check that the address can be bound, before the models are loaded."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen there: {error}", where=f"{host}:{port}", fix="choose --port") from error
