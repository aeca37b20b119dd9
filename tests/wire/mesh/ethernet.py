"""An Ethernet of network namespaces: hosts on a bridge, whose cables can be pulled."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator

_counter = itertools.count()


def obstacle() -> str:
    """Why there can be no namespaces here, or ""."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and iproute2 for network namespaces"
    try:
        ip("netns", "add", f"mt{os.getpid()}")
    except subprocess.CalledProcessError:
        return "this kernel or container allows no network namespaces"
    ip("netns", "delete", f"mt{os.getpid()}")
    return ""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Ethernet:
    """Two switches with one cable between them; :func:`ethernet` makes it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.switches = (f"{name}a", f"{name}b")
        self.hosts: list[str] = []

    def host(self, switch: int = 0) -> tuple[str, str]:
        """A namespace with an address: (namespace, address)."""
        number = len(self.hosts) + 1
        space, link = f"{self._name}h{number}", f"{self._name}.{number}"
        ip("netns", "add", space)
        self.hosts.append(space)
        ip("link", "add", link, "type", "veth", "peer", "name", "mesh0", "netns", space)
        ip("link", "set", link, "master", self.switches[switch], "up")
        address = f"10.93.38.{number}"
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "mesh0")
        ip("-n", space, "link", "set", "mesh0", "up")
        return space, address

    def part(self) -> None:
        """Pull the cable between the switches: packets vanish, nobody is told."""
        ip("link", "set", f"{self._name}c", "nomaster")

    def join(self) -> None:
        ip("link", "set", f"{self._name}c", "master", self.switches[0])


@contextlib.contextmanager
def ethernet() -> Iterator[Ethernet]:
    name = f"m{os.getpid() % 100_000}{next(_counter) % 10}"
    network = Ethernet(name)
    try:
        for switch in network.switches:
            ip("link", "add", switch, "type", "bridge")
            ip("link", "set", switch, "up")
        ip("link", "add", f"{name}c", "type", "veth", "peer", "name", f"{name}d")
        for end, switch in zip(("c", "d"), network.switches, strict=True):
            ip("link", "set", f"{name}{end}", "master", switch, "up")
        yield network
    finally:
        for space in network.hosts:
            subprocess.run(["ip", "netns", "delete", space], capture_output=True, timeout=10)
        for link in (f"{name}c", *network.switches):
            subprocess.run(["ip", "link", "delete", link], capture_output=True, timeout=10)
