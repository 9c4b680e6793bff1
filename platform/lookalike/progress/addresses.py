"""Which addresses a webhook may have: a customer names the URL, and the request is made from inside our network.

Only ``https``, and only hosts all of whose addresses are public. The request goes to an address that was checked, so
that a name that resolves to another one later leads nowhere. An operator can allow hosts by name, also with ``http``
and private addresses.
"""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from lookalike.errors import ConfigError, UnreachableError

ALLOWED = "LOOKALIKE_WEBHOOK_HOSTS"
"""Environment variable of the operator: hosts, separated by commas, that webhooks may reach by ``http`` and at private
addresses: ``hooks.internal,127.0.0.1:8000``. A host without a port is allowed at every port."""

_MOST_CHARACTERS = 2_000
_PRINTABLE = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True)
class Endpoint:
    """The URL of a webhook, whose form was checked."""

    scheme: str
    host: str
    port: int
    path: str
    """With the query."""
    allowed: bool
    """Whether the operator allows the host."""

    @property
    def authority(self) -> str:
        """Host and port as the ``Host`` header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"


def parse_endpoint(url: str) -> Endpoint:
    """Check the form of a webhook's URL. Nothing is looked up.

    Raises ConfigError: it is not an https URL (or http at an allowed host), holds a user, or is too long.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _wrong("the webhook is not a valid URL", url) from None
    if len(url) > _MOST_CHARACTERS or not _PRINTABLE.fullmatch(url):
        raise _wrong("the webhook is not a URL of up to 2000 printable ASCII characters", url[:100])
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _wrong("the webhook is not an https URL", url)
    if parts.username is not None or parts.password is not None:
        raise _wrong("the webhook holds a user or a password; requests are signed instead", url)
    port = port or (443 if parts.scheme == "https" else 80)
    hosts = {host.strip().lower() for host in os.environ.get(ALLOWED, "").split(",") if host.strip()}
    allowed = parts.hostname in hosts or f"{parts.hostname}:{port}" in hosts
    if parts.scheme == "http" and not allowed:
        raise _wrong("the webhook is not encrypted", url, f"use https; an operator can allow a host in {ALLOWED}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Endpoint(parts.scheme, parts.hostname, port, path, allowed)


def addresses_of(endpoint: Endpoint) -> list[str]:
    """Look the host up; return its addresses, which may all be connected to.

    Raises:
        ConfigError: an address is not public, and the operator does not allow the host.
        UnreachableError: the name has no address.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise UnreachableError("the webhook's host is not known", value=endpoint.host, fix="check its name") from error
    addresses = list(dict.fromkeys(str(each[4][0]) for each in found))
    if not endpoint.allowed:
        for address in addresses:
            if not _is_public(address):
                raise _wrong("the webhook leads into a private network", f"{endpoint.host} is {address}")
    return addresses


def _is_public(address: str) -> bool:
    number = ipaddress.ip_address(address.partition("%")[0])
    inside = getattr(number, "ipv4_mapped", None) or getattr(number, "sixtofour", None)
    if isinstance(number, ipaddress.IPv6Address) and number in ipaddress.ip_network("64:ff9b::/96"):
        inside = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
    return (
        number.is_global
        and not number.is_multicast
        and (inside is None or (inside.is_global and not inside.is_multicast))
    )


def _wrong(what: str, value: str, fix: str = "name a public https URL") -> ConfigError:
    return ConfigError(what, value=value, fix=fix)
