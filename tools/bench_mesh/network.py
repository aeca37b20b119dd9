"""A switch and one network namespace a node, all inside namespaces of this program's own.

Every node has its own interface, so that what it sends is counted the same way whatever the
protocol: bytes of Ethernet frames that came out of its end of a veth pair. Root is not needed where
unprivileged user namespaces are allowed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_INSIDE = "MESHD_BENCH_INSIDE"
_SWITCHES = ("sw0", "sw1")


def enter(module: str, arguments: list[str]) -> None:
    """Start this program again in namespaces of its own; return when it runs there already.

    All processes and interfaces are gone when the program is, however it ends.

    :raises SystemExit: with that program's status.
    """
    if os.environ.get(_INSIDE):
        _prepare()
        return
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    kinds = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [sys.executable, "-m", module, *arguments]
    whole = subprocess.Popen(["unshare", *user, *kinds, *command], env={**os.environ, _INSIDE: "1"})
    # unshare ignores what would end it kindly, and takes all of them along when it is killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(whole.wait())
    finally:
        whole.kill()


def _prepare() -> None:
    # `ip netns` keeps its files here; nobody else sees this mount.
    subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
    Path("/run/netns").mkdir()
    lines = ["link set lo up", *(f"link add {name} type bridge" for name in _SWITCHES)]
    lines += [f"link set {name} up" for name in _SWITCHES]
    _ip(lines)


class Network:
    """Ports of the switch, numbered from 1 to 250."""

    def __init__(self, ports: int) -> None:
        self.ports = range(1, ports + 1)
        for port in self.ports:
            name = namespace(port)
            _ip([f"netns add {name}"])
            _ip(
                [
                    f"link add v{port} type veth peer name eth0 netns {name}",
                    f"link set v{port} master {_SWITCHES[0]} up",
                ]
            )
            _ip(
                [
                    "link set lo up",
                    f"addr add {address(port)}/24 dev eth0",
                    f"link set eth0 address {_mac(port)} up",
                    # The kernel's table of neighbours is one for all namespaces, and fifty that
                    # talk to fifty fill it; entries that were put there do not count.
                    *(
                        f"neigh add {address(one)} lladdr {_mac(one)} nud permanent dev eth0"
                        for one in self.ports
                        if one != port
                    ),
                ],
                name,
            )

    def close(self) -> None:
        # A namespace takes its interfaces along only some time after it was deleted.
        _ip([f"link del v{port}" for port in self.ports])
        _ip([f"netns del {namespace(port)}" for port in self.ports])

    def sent_bytes(self) -> dict[int, int]:
        """What each node sent until now."""
        sent = {}
        for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
            name, _, counts = line.partition(":")
            if name.strip().startswith("v"):
                sent[int(name.strip()[1:])] = int(counts.split()[0])
        return {port: sent[port] for port in self.ports}

    def lose(self, percent: int) -> None:
        """Let every node lose so many of the packets that come to it; 0 for none."""
        rules = "flush ruleset\n"
        if percent:
            rules += (
                "table inet loss {\n chain input {\n type filter hook input priority 0;\n"
                f' iif "eth0" numgen random mod 100 < {percent} drop;\n }}\n}}\n'
            )
        for port in self.ports:
            subprocess.run([*inside(port), "nft", "-f", "-"], input=rules, text=True, check=True)

    def split(self, ports: Iterable[int]) -> None:
        """Put these nodes on a switch of their own."""
        _ip([f"link set v{port} master {_SWITCHES[1]}" for port in ports])

    def heal(self) -> None:
        _ip([f"link set v{port} master {_SWITCHES[0]}" for port in self.ports])


def namespace(port: int) -> str:
    return f"n{port}"


def address(port: int) -> str:
    return f"10.99.0.{port}"


def _mac(port: int) -> str:
    return f"02:00:0a:63:00:{port:02x}"


def inside(port: int) -> list[str]:
    """How a command begins that is to run at this port."""
    return ["ip", "netns", "exec", namespace(port)]


def _ip(lines: list[str], namespace: str = "") -> None:
    where = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines), text=True, check=True)
