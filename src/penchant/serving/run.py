"""From folders to a running server."""

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
    """Each expert's folder by name, and the router before them where there is one.

    Args:
        sources: folders of models, each perhaps as NAME=FOLDER; or one folder of the domain-expert recipe, whose router
            and experts are taken.

    Raises:
        ConfigError: two of one name, or a name that means something else.
    """
    if len(sources) == 1 and (Path(sources[0]) / "router" / ROUTER).exists():
        folder = Path(sources[0])
        router = load_router(folder / "router")
        return {name: str(folder / name / "run") for name in router.names}, router
    found: dict[str, str] = {}
    for source in sources:
        name, equals, folder_name = source.partition("=")
        if not equals:
            name, folder_name = Path(source).resolve().name, source
        if name in found or name == "router" or not name:
            raise ConfigError(f"'{name}' cannot be this model's name", where=source, fix="name it: NAME=FOLDER")
        found[name] = folder_name
    return found, None


def serve(
    folders: Mapping[str, str], router: Router | None, limits: Limits, access: Access, *, host: str, port: int
) -> None:
    """Load the models and answer until stopped: SIGTERM and Ctrl-C let answers that are being given end first.

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
    """Find out before models are loaded whether one can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen there: {error}", where=f"{host}:{port}", fix="choose --port") from error
