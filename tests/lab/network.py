"""A bridge between lab nodes, for tests of several machines, with links that can be cut."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lab.node import Node, booted

SUBNET = "10.93.37"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)


class Network:
    """One Ethernet; :func:`bridge` makes it. Names of interfaces have at most 15 characters."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._nodes = 0
        self._links: dict[Node, str] = {}

    @contextlib.contextmanager
    def node(self, name: str, lowerdir: str, scratch: Path) -> Iterator[Node]:
        """A booted node with an address of its own, in `Node.address`."""
        self._nodes += 1
        link = f"{self.name}.{self._nodes}"
        veth = [f"--network-veth-extra={link}:mesh0"]
        with booted(name, lowerdir, scratch, arguments=["--private-network", *veth]) as node:
            node.address = f"{SUBNET}.{self._nodes}"
            self._links[node] = link
            ip("link", "set", link, "master", self.name, "up")
            node.run(["ip", "address", "add", f"{node.address}/24", "dev", "mesh0"], check=True)
            node.run(["ip", "link", "set", "mesh0", "up"], check=True)
            yield node

    def cut(self, node: Node) -> None:
        """Take the cable out: packets vanish, nobody is told."""
        ip("link", "set", self._links[node], "nomaster")

    def mend(self, node: Node) -> None:
        ip("link", "set", self._links[node], "master", self.name)


@contextlib.contextmanager
def bridge() -> Iterator[Network]:
    name = f"ml{os.getpid() % 10_000_000}"
    ip("link", "add", name, "type", "bridge")
    try:
        ip("link", "set", name, "up")
        yield Network(name)
    finally:
        ip("link", "delete", name)
