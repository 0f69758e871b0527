"""Start of a server from folders of models."""

from __future__ import annotations

import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from penchant.errors import ConfigError, require_extra
from penchant.serving.experts import Experts
from penchant.serving.limits import Limits
from penchant.serving.router import ROUTER, Router, load_router

if TYPE_CHECKING:
    from penchant.serving.access import Access


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
    folders: Mapping[str, str], router: Router | None, limits: Limits, access: Access, *, host: str, port: int
) -> None:
    """Load the models and serve until SIGTERM or Ctrl-C, after which running answers are completed.

    Args:
        folders: folder of each expert by name.
        router: chooses the expert of a request; None where there is none.
        limits: limits on requests.
        access: conditions for access.
        host: name or address to listen at.
        port: port to listen at.

    Raises:
        ConfigError: the libraries are not installed.
        ModelError: a model cannot be loaded.
    """
    with require_extra("serve", "serving needs FastAPI and uvicorn"):
        import uvicorn

        from penchant.serving.app import build_app
        from penchant.serving.connections import timed_protocol
    _check_address(host, port)
    app = build_app(Experts(folders), router, limits, access)
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
