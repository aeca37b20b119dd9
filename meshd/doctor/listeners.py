"""Who listens on which TCP port, from /proc (proc_net_tcp, proc_pid_fd(5))."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import sys
from collections.abc import Collection
from pathlib import Path

from meshd.doctor.evidence import Listener, Process
from meshd.node.sysfs import read_bytes, read_text

_LISTEN = "0A"
_MAX_COMMAND = 200


def parse_address(text: str) -> tuple[str, int]:
    """``0100007F:2479``: the address as 32-bit words in the machine's order, the port in hex.

    :raises ValueError: for anything else.
    """
    address, _, port = text.partition(":")
    words = [int(address[i : i + 8], 16) for i in range(0, len(address), 8)]
    raw = struct.pack(f"{'<' if sys.byteorder == 'little' else '>'}{len(words)}I", *words)
    family = {4: socket.AF_INET, 16: socket.AF_INET6}.get(len(raw))
    if family is None:
        raise ValueError(f"no address: {text!r}")
    return socket.inet_ntop(family, raw), int(port, 16)


def parse_tcp(text: str) -> list[tuple[str, int, int]]:
    """Listening sockets of /proc/net/tcp or tcp6: address, port, inode."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != _LISTEN:
            continue
        try:
            address, port = parse_address(fields[1])
            found.append((address, port, int(fields[9])))
        except ValueError:
            continue
    return found


def parse_unit(cgroup: str) -> str:
    """The systemd unit in /proc/PID/cgroup, "" for none: the last ``.service`` in the path."""
    for line in cgroup.splitlines():
        names = re.findall(r"/([^/]+\.(?:service|scope))", line)
        if names:
            return str(names[-1]) if names[-1].endswith(".service") else ""
    return ""


def read_listeners(ports: Collection[int], root: Path = Path("/")) -> tuple[Listener, ...]:
    """Listeners on these ports. Processes of others are seen by root only."""
    sockets = [
        entry
        for name in ("proc/net/tcp", "proc/net/tcp6")
        for entry in parse_tcp(read_text(root / name) or "")
        if entry[1] in ports
    ]
    if not sockets:
        return ()
    holders = _holders({inode for _, _, inode in sockets}, root)
    return tuple(
        Listener(address, port, tuple(holders.get(inode, ()))) for address, port, inode in sockets
    )


def _holders(inodes: Collection[int], root: Path) -> dict[int, list[Process]]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[Process]] = {}
    for folder in sorted((root / "proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        for link in _links(folder / "fd") & wanted.keys():
            found.setdefault(wanted[link], []).append(_process(folder))
    return found


def _links(folder: Path) -> set[str]:
    """Where descriptors lead; those of other users and those closed meanwhile are left out."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for link in folder.iterdir():
            with contextlib.suppress(OSError):
                found.add(str(link.readlink()))
    return found


def _process(folder: Path) -> Process:
    command = (read_bytes(folder / "cmdline", max_bytes=4096) or b"").replace(b"\0", b" ")
    return Process(
        pid=int(folder.name),
        command=command.decode("utf-8", "replace").strip()[:_MAX_COMMAND],
        unit=parse_unit(read_text(folder / "cgroup") or ""),
    )
