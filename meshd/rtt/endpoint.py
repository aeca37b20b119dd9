"""A peer's ``host:port`` from its record: somebody else's text, so anything may stand there."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_ADDRESSES = 4
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9.])?")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """:ivar address: the text as given. :ivar ip: "" while `host` is a name nobody resolved."""

    address: str
    host: str
    port: int
    ip: str = ""


def parse(address: str) -> Endpoint | None:
    """None for what is no ``host:port``, ``[IPv6]:port``, or cannot be a single machine."""
    host, _, port = address.rpartition(":")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        return None
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    try:
        ip = usable_ip(host)
    except ValueError:
        is_name = not bracketed and _NAME.fullmatch(host)
        return Endpoint(address, host, int(port)) if is_name else None
    if not ip or bracketed != (":" in host):
        return None
    return Endpoint(address, host, int(port), ip)


def version_of(ip: str) -> int:
    """4 or 6."""
    return 6 if ":" in ip else 4


def usable_ip(text: str) -> str:
    """The address in its shortest form, "" where it is nobody's own.

    An address with a scope (``%eth0``) is refused: another machine's interfaces are not ours.

    :raises ValueError: not an IP address.
    """
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    return "" if ip.is_multicast or ip.is_unspecified or "%" in text else str(ip)


def endpoints(addresses: Iterable[str]) -> tuple[Endpoint, ...]:
    """The usable ones, at most `MAX_ADDRESSES`.

    A peer's own loopback is ours, and would look nearer than anything: it counts only where the
    peer names nothing else, as nodes on one machine do.
    """
    parsed = [one for address in addresses if (one := parse(address)) is not None]
    remote = [one for one in parsed if not is_loopback(one)]
    return tuple((remote or parsed)[:MAX_ADDRESSES])


def is_loopback(endpoint: Endpoint) -> bool:
    if not endpoint.ip:
        return endpoint.host == "localhost"
    return ipaddress.ip_address(endpoint.ip).is_loopback
