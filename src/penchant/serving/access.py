"""Who may ask: clients that have the key, under a name that is the server's own.

A page in a browser can point a name of its own at this machine and ask the server under that name ("DNS rebinding"), so
the `Host` of a request must be an address, which no page can claim, or a name that the server is known by.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from penchant.errors import ConfigError
from penchant.serving.refusals import Refusal, invalid

LOCALHOST = "localhost"
ANY_HOST = "*"


@dataclass(frozen=True)
class Access:
    """What a request must bring.

    Attributes:
        api_key: that clients send as a bearer token; None: none is needed.
        hosts: names under which the server may be asked, beside addresses and localhost; "*" is any.
    """

    api_key: str | None
    hosts: frozenset[str]

    @classmethod
    def at(cls, host: str, api_key: str | None, allowed_hosts: Iterable[str] = ()) -> Access:
        """The access to a server that listens at a host.

        Raises:
            ConfigError: others than this machine can reach it and there is no key; or the key cannot be sent.
        """
        if api_key is None and not is_loopback(host):
            raise ConfigError(
                "other machines can reach this address, and no key is asked of them",
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
        """Why a request with these headers, their names in small letters, is refused; None where it is not."""
        host = headers.get("host")
        if host is not None and not self._knows(host_name(host)):
            return invalid(
                f"this server does not know itself as '{host_name(host)}'; if it should: --allowed-host",
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
    """Whether only this machine can reach what listens there; of names only localhost is known to."""
    return host.lower() == LOCALHOST or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def host_name(header: str) -> str:
    """A `Host` header's name or address without the port, in small letters."""
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
    """Whether they are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(*(hashlib.sha256(text.encode()).digest() for text in (token, key)))
