"""How many connections there may be: in all, and from one address elsewhere. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_TOTAL = 16_384
_EACH = 1024
# Files, the engines' health checks, and the doors of other nodes.
_SPARE = 256


@dataclass(frozen=True, slots=True)
class CrowdLimits:
    """:ivar total: connections of clients. :ivar each: of one address that is not this machine."""

    total: int = _TOTAL
    each: int = _EACH


def limits_for(descriptors: int) -> CrowdLimits:
    """:param descriptors: that this process may open; a request needs two, one to its engine."""
    total = min(_TOTAL, max(64, (descriptors - _SPARE) // 2))
    return CrowdLimits(total, min(_EACH, max(16, total // 2)))


def household(host: str) -> str:
    """What counts as one address: of IPv6 a /64, all of which is anybody's who has one of it.

    :param host: as the socket API writes it.
    """
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))


class Crowd:
    """:ivar total: connections that are open now."""

    def __init__(self, limits: CrowdLimits) -> None:
        self.total = 0
        self._limits = limits
        self._each: dict[str, int] = {}

    def enter(self, address: str) -> str:
        """Count one more. :param address: "" for this machine. :returns: why not, "" if it may."""
        if self.total >= self._limits.total:
            return f"This gateway has all the {self.total} connections that it can."
        here = self._each.get(address, 0)
        if address and here >= self._limits.each:
            return f"There are {here} connections from {address} already, which is all it may have."
        self.total += 1
        if address:
            self._each[address] = here + 1
        return ""

    def leave(self, address: str) -> None:
        """Forget one that has entered."""
        self.total -= 1
        if not address:
            return
        left = self._each[address] - 1
        if left:
            self._each[address] = left
        else:
            del self._each[address]
