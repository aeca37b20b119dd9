"""The engine's tools that meshd runs on lab nodes, as the machine outside sees them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.node import Node, cgroup2

TOOLS = ("llama-imatrix", "llama-perplexity")


@dataclass(frozen=True, slots=True)
class Child:
    """:ivar pid: outside of its node. :ivar status: of `/proc/PID/status`. :ivar nice: 0 to 19."""

    pid: int
    name: str
    words: tuple[str, ...]
    status: dict[str, str]
    nice: int

    @property
    def gone(self) -> bool:
        return not Path(f"/proc/{self.pid}").exists()

    def after(self, option: str) -> str:
        """The word after this one, "" where it is not there."""
        found = [i for i, word in enumerate(self.words[:-1]) if word == option]
        return self.words[found[0] + 1] if found else ""


def _meshds(node: Node) -> Path:
    """Where the processes of meshd's unit are listed."""
    mount = cgroup2()
    assert mount is not None
    (found,) = (mount / node.cgroup).glob("**/mesh.slice/meshd.service/cgroup.procs")
    return found


def _pids(listed: Path) -> list[int]:
    # While it is started again there is none.
    with contextlib.suppress(OSError):
        return [int(line) for line in listed.read_text().split()]
    return []


def brain_of(node: Node) -> int:
    """meshd's own process, outside of its node: to kill it at once, nothing has to be started."""
    inner = node.main_pid("meshd")
    for pid in _pids(_meshds(node)):
        status = _status(pid)
        if status.get("NSpid", "").split()[-1:] == [str(inner)]:
            return pid
    raise AssertionError(f"{node.name} has no meshd")


def _status(pid: int) -> dict[str, str]:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {}


def _child(pid: int) -> Child | None:
    status = _status(pid)
    # The kernel keeps 15 characters of it.
    name = next((one for one in TOOLS if one[:15] == status.get("Name")), "")
    if not name:
        return None
    with contextlib.suppress(OSError, IndexError):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return Child(pid, name, tuple(words), status, int(stat[16]))
    return None


class Children:
    """Looks at them until it is stopped. :ivar seen: by node's name, each process once."""

    def __init__(self, nodes: list[Node], every_s: float = 0.03) -> None:
        self.seen: dict[str, list[Child]] = {node.name: [] for node in nodes}
        self._stopped = threading.Event()
        self._listed: dict[str, Path] = {}

        def run() -> None:
            while not self._stopped.wait(every_s):
                for node in nodes:
                    self._look(node)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def _look(self, node: Node) -> None:
        if node.name not in self._listed:
            with contextlib.suppress(ValueError):
                self._listed[node.name] = _meshds(node)
            return
        known = {one.pid for one in self.seen[node.name]}
        for pid in _pids(self._listed[node.name]):
            if pid not in known and (child := _child(pid)) is not None:
                self.seen[node.name].append(child)

    def of(self, node: Node, name: str) -> list[Child]:
        """Those that work, oldest first; none that was only asked for its options."""
        seen = list(self.seen[node.name])
        return [one for one in seen if one.name == name and "--help" not in one.words]

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10)


@contextmanager
def children(nodes: list[Node]) -> Iterator[Children]:
    watching = Children(nodes)
    try:
        yield watching
    finally:
        watching.stop()
