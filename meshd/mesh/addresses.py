"""Addresses of nodes: as the configuration and records write them, and this machine's own."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from pyroute2 import IPRoute  # type: ignore[import-untyped]

from meshd.config.addresses import parse_address
from meshd.config.settings import MeshSettings

# Interfaces of containers and virtual machines: no other node can reach us by their addresses.
_INNER = re.compile(r"(docker|br-|veth|vb-|ve-|virbr|vnet|lxc|lxdbr|cni|flannel|cali|podman|kube)")
_IFF_UP = 0x1
_IFF_LOOPBACK = 0x8
# linux/if_addr.h: duplicate, deprecated, tentative; and of IPv6, temporary.
_UNFIT = 0x08 | 0x20 | 0x40
_TEMPORARY = 0x01
_MOST = 8


@dataclass(frozen=True, slots=True)
class HostPort:
    """:ivar host: a name or an IP address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def host_port(text: str, default_port: int) -> HostPort:
    """Parse ``host``, ``host:port``, ``[IPv6]``, ``[IPv6]:port`` or a bare IPv6 address.

    :raises ValueError: anything else; the message says what is wrong.
    """
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} has brackets that do not fit")
        port = rest[1:]
        ipaddress.IPv6Address(host)
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: a port is a number from 1 to 65535")
    if ":" in host:
        ipaddress.IPv6Address(host)
    elif not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", host):
        raise ValueError(f"{text!r} is not a host name or an IP address")
    return HostPort(host, int(port) if port else default_port)


def told_addresses(settings: MeshSettings) -> tuple[str, ...]:
    """What this node tells others to dial: as configured, else the address that it listens on,
    else this machine's own, the one of the default route first.
    """
    listen = parse_address(settings.listen)
    if settings.advertise != "auto":
        return tuple(str(host_port(text, listen.port)) for text in settings.advertise)
    wide = [host for host in listen.hosts if ipaddress.ip_address(host).is_unspecified]
    if not wide:
        return tuple(str(HostPort(host, listen.port)) for host in sorted(listen.hosts))
    hosts = own_hosts()
    if wide == ["0.0.0.0"]:  # noqa: S104 -- compared
        hosts = tuple(host for host in hosts if ":" not in host)
    return tuple(str(HostPort(host, listen.port)) for host in hosts)


def own_hosts() -> tuple[str, ...]:
    """Addresses of this machine that others on its networks can reach, at most eight: IPv4 before
    IPv6, the interface of the default route before others, no loopback and no container bridges.
    """
    with IPRoute() as netlink:
        names = {
            link["index"]: link.get_attr("IFLA_IFNAME") or ""
            for link in netlink.get_links()
            if link["flags"] & _IFF_UP and not link["flags"] & _IFF_LOOPBACK
        }
        main = {
            route.get_attr("RTA_OIF")
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in netlink.get_default_routes(family=family)
        }
        found = []
        for address in netlink.get_addr():
            index = address["index"]
            flags = address.get_attr("IFA_FLAGS") or address["flags"]
            text = address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
            if not text or index not in names or flags & _UNFIT or _INNER.match(names[index]):
                continue
            parsed = ipaddress.ip_address(text)
            passing = parsed.version == 6 and flags & _TEMPORARY
            if not parsed.is_link_local and not passing:
                found.append((parsed.version, index not in main, index, str(parsed)))
    return tuple(dict.fromkeys(text for _, _, _, text in sorted(found)))[:_MOST]
