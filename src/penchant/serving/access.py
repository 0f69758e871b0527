"""Access control: requests need the API key, and a `Host` header that belongs to the server.

A web page can point a host name of its own at this machine and send requests under that name ("DNS rebinding"). So the
`Host` of a request must be an address, which no page can claim, or one of the server's names.
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
