"""A bridge between lab nodes, for tests of several machines, with links that can be cut."""

from __future__ import annotations

import contextlib
import itertools
import os
import string
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.lab.node import Node, booting

SUBNET = "10.93.37"
INTERFACE = "mesh0"
TABLE = "lab"
_letters = itertools.cycle(string.ascii_lowercase)


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
        with self.booting(name, lowerdir, scratch) as node:
            node.await_boot()
            self.plug_in(node)
            yield node

    @contextlib.contextmanager
    def booting(self, name: str, lowerdir: str, scratch: Path) -> Iterator[Node]:
        """One that only begins to boot: when it is up, `plug_in` connects it."""
        self._nodes += 1
        number, link = self._nodes, f"{self.name}.{self._nodes}"
        veth = [f"--network-veth-extra={link}:{INTERFACE}"]
        arguments = ["--private-network", *veth]
        with booting(name, lowerdir, scratch, arguments=arguments) as node:
            node.address = f"{SUBNET}.{number}"
            self._links[node] = link
            yield node

    def plug_in(self, node: Node) -> None:
        """Connect a node that is up, for the first time or after it has booted again."""
        ip("link", "set", self._links[node], "master", self.name, "up")
        address = f"{node.address}/24"
        node.run(["ip", "address", "replace", address, "dev", INTERFACE], check=True)
        node.run(["ip", "link", "set", INTERFACE, "up"], check=True)
        # As Debian has it; a new network namespace allows nobody to ping.
        nsenter(node, "sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647")

    def cut(self, node: Node) -> None:
        """Take the cable out: packets vanish, nobody is told."""
        ip("link", "set", self._links[node], "nomaster")

    def mend(self, node: Node) -> None:
        ip("link", "set", self._links[node], "master", self.name)


def drop_incoming(node: Node, sources: Sequence[Node]) -> None:
    """What these others send does not arrive at this node; what it sends does. (Packets are
    dropped before the node's own stack sees them.)
    """
    addresses = ", ".join(source.address for source in sources)
    nft(
        node,
        f"add table netdev {TABLE}",
        f"add chain netdev {TABLE} from {{ type filter hook ingress device {INTERFACE} "
        "priority 0 ; }",
        f"add rule netdev {TABLE} from ip saddr {{ {addresses} }} drop",
    )


def drop_nothing(node: Node) -> None:
    """Undo every `drop_incoming` of a node."""
    nft(node, f"add table netdev {TABLE}", f"delete table netdev {TABLE}")


def nft(node: Node, *lines: str) -> None:
    """The machine's own nft, at work in a node's network."""
    nsenter(node, "nft", "-f", "-", text="\n".join(lines))


def nsenter(node: Node, *command: str, text: str = "") -> None:
    """Run one of this machine's own programs in a node's network."""
    subprocess.run(
        ["nsenter", f"--target={node.pid}", "--net", *command],
        input=text,
        check=True,
        capture_output=True,
        text=True,
        timeout=10,
    )


@contextlib.contextmanager
def bridge() -> Iterator[Network]:
    # Nodes' links are named after it, with at most 15 characters.
    name = f"ml{os.getpid() % 10_000_000}{next(_letters)}"
    ip("link", "add", name, "type", "bridge")
    try:
        ip("link", "set", name, "up")
        yield Network(name)
    finally:
        ip("link", "delete", name)
