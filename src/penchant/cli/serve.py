"""The verb that answers over the network."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from penchant.cli.output import Count, log_notes


def serve(
    *sources: Annotated[
        str, Parameter(help="Model folders, each perhaps NAME=FOLDER; or a domain-expert recipe's folder.")
    ],
    host: str = "127.0.0.1",
    port: int = 8000,
    batch: Count = 32,
    waiting: Count = 256,
    max_tokens: Count = 512,
    timeout_s: float = 120.0,
    read_timeout_s: float = 30.0,
    max_body_bytes: Count = 4 * 2**20,
    api_key: Annotated[str | None, Parameter(env_var="PENCHANT_API_KEY")] = None,
    allowed_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> None:
    """Answer at /v1/chat/completions as OpenAI's API does, by one model or several, with a router in front.

    Parameters
    ----------
    host
        Address to listen at; 0.0.0.0 is everywhere, and needs a key.
    port
        Port to listen at.
    batch
        Answers generated together.
    waiting
        Requests that may wait; further ones are refused with 503.
    max_tokens
        Tokens of an answer at most.
    timeout_s
        Seconds from a request to the end of its answer.
    read_timeout_s
        Seconds a client has to send a request's headers, and as many for its body.
    max_body_bytes
        Bytes of a request at most; larger ones are refused with 413.
    api_key
        Key that clients send as a bearer token. In PENCHANT_API_KEY no other user sees it in the list of processes.
    allowed_host
        Name under which clients may ask, beside addresses, localhost and --host; may come several times, * is any.
    """
    from penchant.errors import ConfigError
    from penchant.serving.access import Access, Limits
    from penchant.serving.run import find_experts
    from penchant.serving.run import serve as run

    if not sources:
        raise ConfigError("no model is named", fix="penchant serve runs/first")
    access = Access.for_host(host, api_key, allowed_host)
    limits = Limits(batch, waiting, max_tokens, timeout_s, read_timeout_s, max_body_bytes)
    folders, router = find_experts(sources)
    listed = ", ".join([*folders, *(["router"] if router is not None else [])])
    log_notes([f"http://{host}:{port}/v1 answers as {listed}"])
    run(folders, router, limits, access, host=host, port=port)
