"""Starting nodes of a mesh as processes and asking what they see."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meshd.mesh import identity

SECRET = "k3m9-xq7t-8vbz-2dfw-5hjn-6prs"


def free_udp_port() -> int:
    """A port that is free on all addresses now."""
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("::", 0))
        return int(datagrams.getsockname()[1])


class MeshNode:
    """A process. :ivar id: its node id. :ivar seen: all lines that it wrote."""

    def __init__(
        self,
        folder: Path,
        listen: str,
        *,
        namespace: str = "",
        secret: str = SECRET,
        **options: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.listen, self.namespace = folder, listen, namespace
        self.id = identity.identity(folder).id
        self._options = {
            "folder": str(folder),
            "listen": listen,
            "secret": secret,
            "name": folder.name,
            **options,
        }
        self.seen: list[dict[str, Any]] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        self.seen = []
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", "tests.wire.mesh.child", json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        threading.Thread(target=self._read, args=(self._process, self.seen), daemon=True).start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def last(self) -> dict[str, Any]:
        return self.seen[-1] if self.seen else {"members": {}, "core": False, "revoked": []}

    def members(self, status: str = "") -> set[str]:
        """Ids of those in its view."""
        return {
            node
            for node, (_, held, _) in self.last["members"].items()
            if not status or held == status
        }

    def cores(self) -> set[str]:
        return {node for node, (_, _, core) in self.last["members"].items() if core}

    def name_of(self, node: str) -> str:
        return str(self.last["members"].get(node, [""])[0])

    def tell(self, **command: Any) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def close(self, back_in_s: float | None = None) -> None:
        self.tell(close=back_in_s)
        assert self.wait() == 0

    def wait(self) -> int:
        assert self._process is not None
        code = self._process.wait(15)
        self._shut()
        return code

    def end(self) -> None:
        """Whatever state it is in."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        self._shut()

    def _shut(self) -> None:
        assert self._process is None or self._process.stdin is not None
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()

    @staticmethod
    def _read(process: subprocess.Popen[bytes], seen: list[dict[str, Any]]) -> None:
        assert process.stdout is not None
        with process.stdout:
            seen.extend(map(json.loads, process.stdout))


class Nodes:
    """All nodes of a test, ended with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._all: list[MeshNode] = []

    def node(self, name: str, **options: Any) -> MeshNode:
        listen = options.pop("listen", None) or f"127.0.0.1:{free_udp_port()}"
        node = MeshNode(self._folder / name, listen, **options)
        self._all.append(node)
        return node

    def end(self) -> None:
        for node in self._all:
            node.end()


def until(condition: Callable[[], object], timeout_s: float, what: str = "") -> float:
    """Wait until it holds, and say after how many seconds; fail when it does not in time."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - began


def together(*nodes: MeshNode) -> bool:
    """Whether each of them sees exactly these, all alive."""
    ids = {node.id for node in nodes}
    return all(node.members() == ids == node.members("alive") for node in nodes)


@contextlib.contextmanager
def stopped(node: MeshNode) -> Iterator[None]:
    """A process that stands still."""
    node.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        node.signal(signal.SIGCONT)
