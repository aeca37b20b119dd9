"""What the network carries that other nodes are reached by: the link speed of its interfaces.

Read rather than measured: a measurement would fill the network of everybody, and would have to be
made between each two nodes. Where the kernel knows no speed (Wi-Fi, some tunnels and bridges) it
is not known, and the planner takes a cautious figure.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

from pyroute2 import IPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from meshd.node.speed import rounded
from meshd.node.sysfs import read_number

# Of a frame of 1538 bytes on the wire, 1448 are a TCP payload with timestamps.
_PAYLOAD_SHARE = 1448 / 1538
# Between nodes on one machine nothing is as slow as a network; what a veth says of itself.
_LOOPBACK_MBIT_S = 10_000
_PEERS_MOST = 64


class NetworkWatch:
    """:ivar bytes_s: towards those that were last named, 0 when not known."""

    def __init__(self) -> None:
        self._reached: frozenset[str] = frozenset()
        self.bytes_s = 0

    async def look(self, addresses: frozenset[str]) -> None:
        """Read it again where other nodes are reached than before."""
        if addresses != self._reached:
            self._reached = addresses
            with contextlib.suppress(OSError, NetlinkError):
                self.bytes_s = await asyncio.to_thread(network_bytes_s, sorted(addresses))


def network_bytes_s(addresses: Iterable[str], root: Path = Path("/")) -> int:
    """Payload bytes a second of the slowest interface towards these, 0 when not known. Blocks for
    milliseconds.

    :param addresses: ``host:port`` of other nodes; names are not looked up.
    """
    found = set()
    with IPRoute() as netlink:
        links = {link["index"]: link.get_attr("IFLA_IFNAME") or "" for link in netlink.get_links()}
        local = {
            address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS"): links.get(
                address["index"], ""
            )
            for address in netlink.get_addr()
        }
    for host in tuple(_hosts(addresses))[:_PEERS_MOST]:
        found.add(local.get(_own_address(host), ""))
    names = found - {"", "lo"}
    speeds = [_speed(root, name) for name in names]
    if not names and "lo" in found:
        speeds = [_LOOPBACK_MBIT_S]
    return rounded(min(speeds) * 1e6 / 8 * _PAYLOAD_SHARE) if speeds else 0


def _hosts(addresses: Iterable[str]) -> Iterable[str]:
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]")
        try:
            yield str(ipaddress.ip_address(host))
        except ValueError:
            continue


def _own_address(host: str) -> str:
    """Of this machine, the address that packets to `host` leave with; "" where there is no way.

    Connecting a datagram socket sends nothing.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return ""


def _speed(root: Path, name: str) -> int:
    """Mbit/s; Documentation/ABI/testing/sysfs-class-net. -1 and an error both mean unknown."""
    return max(0, read_number(root / "sys/class/net" / name / "speed") or 0)
