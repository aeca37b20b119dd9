"""Listening addresses as text: ``127.0.0.1:9337``, ``[::1]:9337``, ``localhost:9337``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_LOCALHOST = frozenset({"127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class Address:
    """:ivar hosts: IP addresses in their shortest form; ``localhost`` is both of its own."""

    hosts: frozenset[str]
    port: int

    @property
    def loopback(self) -> bool:
        return all(ipaddress.ip_address(host).is_loopback for host in self.hosts)

    def clashes(self, other: Address) -> bool:
        """Whether both cannot be listened on at once; Linux's [::] takes IPv4 as well."""
        if self.port != other.port:
            return False
        return bool(self.hosts & other.hosts) or any(
            _covers(one, another) or _covers(another, one)
            for one in self.hosts
            for another in other.hosts
        )


def parse_address(text: str) -> Address:
    """Parse an address.

    :raises ValueError: not an IP address and a port from 1 to 65535.
    """
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError("a port is a number from 1 to 65535")
    if host == "localhost":
        return Address(_LOCALHOST, int(port))
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{host} is not an IP address") from None
    if bracketed != (address.version == 6):
        raise ValueError("IPv6 addresses, and only those, stand in brackets")
    return Address(frozenset({str(address)}), int(port))


def _covers(wide: str, narrow: str) -> bool:
    if wide == "::":
        return True
    return wide == "0.0.0.0" and ipaddress.ip_address(narrow).version == 4  # noqa: S104 - compared
