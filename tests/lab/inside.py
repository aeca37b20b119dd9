"""Talking to a node from the test's own process: sockets that live in the node, no curl each time.

A socket belongs to the network in which it was made, and a path below /proc/PID/root is the node's
own, so a test can watch many nodes many times a second and stays light. Times are monotonic and
the same on all nodes, as the nodes share the machine's clock.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.lab.node import Node

CONTROL = "run/mesh/meshd.sock"
GATEWAY = ("127.0.0.1", 9337)
PROMPT = "Write a Python function."
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request, with monotonic times in seconds.

    :ivar status: 0 when there was none; then ``error`` says why.
    :ivar node: name of the node that served it. :ivar first_at: of the first byte of the body.
    :ivar whole: the answer ended as it should. :ivar head: the answer's headers.
    """

    began_at: float
    ended_at: float
    status: int = 0
    node: str = ""
    first_at: float = 0.0
    body: str = ""
    error: str = ""
    whole: bool = False
    head: Mapping[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.status == 200 and self.whole and not self.error

    def __str__(self) -> str:
        took_s = self.ended_at - self.began_at
        said = f"{self.error} {self.body[-200:]}"
        return f"{self.status} from {self.node or '-'} in {took_s:.2f} s {said}"


def socket_in(pid: int, address: tuple[str, int], timeout_s: float) -> socket.socket:
    """A TCP connection made within the network of a node. Only the calling thread moves there, and
    comes back.
    """
    own = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
        try:
            _enter(there)
        finally:
            os.close(there)
        try:
            return socket.create_connection(address, timeout_s)
        finally:
            _enter(own)
    finally:
        os.close(own)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


class _Inside(http.client.HTTPConnection):
    def __init__(self, pid: int, address: tuple[str, int], timeout_s: float) -> None:
        super().__init__(*address, timeout=timeout_s)
        self._pid, self._timeout_s = pid, timeout_s

    def connect(self) -> None:
        self.sock = socket_in(self._pid, (self.host, self.port), self._timeout_s)


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("node", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def unix(node: Node, path: str, timeout_s: float = 2.0) -> http.client.HTTPConnection:
    """A connection to a Unix socket of a node. :param path: from the node's root."""
    return _Unix(f"/proc/{node.pid}/root/{path}", timeout_s)


def control(node: Node, path: str, timeout_s: float = 2.0) -> Any:
    """What the brain of a node answers on its control socket, None when it does not."""
    connection = unix(node, CONTROL, timeout_s)
    try:
        connection.request("GET", path)
        reply = connection.getresponse()
        data = reply.read()
        return json.loads(data) if reply.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def chat(
    node: Node,
    model: str,
    *,
    tokens: int = 4,
    stream: bool = False,
    timeout_s: float = 120.0,
    prompt: str = PROMPT,
    headers: Mapping[str, str] | None = None,
    at: tuple[str, int] = GATEWAY,
    on_piece: Callable[[bytes], None] = lambda _: None,
) -> Answer:
    """A greedy chat completion, asked for on a node, through its own gateway or one elsewhere."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "stream": stream,
        "temperature": 0,
        "ignore_eos": True,
    }
    began_at = time.monotonic()
    connection = _Inside(node.pid, at, timeout_s)
    status, first_at, pieces = 0, 0.0, b""
    told: dict[str, str] = {}
    try:
        head = {"Content-Type": "application/json", **(headers or {})}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), head)
        reply = connection.getresponse()
        status, told = reply.status, dict(reply.headers.items())
        while piece := reply.read1(65536):
            first_at = first_at or time.monotonic()
            pieces += piece
            on_piece(piece)
        error, whole = "", not stream or status != 200 or pieces.rstrip().endswith(b"[DONE]")
    except (OSError, http.client.HTTPException) as problem:
        error, whole = f"{type(problem).__name__}: {problem}", False
    finally:
        connection.close()
    text, server = pieces.decode(errors="replace"), told.get("X-Mesh-Node", "")
    return Answer(began_at, time.monotonic(), status, server, first_at, text, error, whole, told)


class Stream:
    """A streamed answer that runs in the background.

    :ivar pieces: how many came so far. :ivar data_at: when each of those with data did.
    """

    def __init__(
        self,
        node: Node,
        model: str,
        tokens: int,
        timeout_s: float = 120.0,
        *,
        prompt: str = PROMPT,
        headers: Mapping[str, str] | None = None,
        at: tuple[str, int] = GATEWAY,
    ) -> None:
        self.pieces = 0
        self.data_at: list[float] = []
        self.answer: Answer | None = None

        def count(piece: bytes) -> None:
            self.pieces += 1
            if b"data: " in piece:
                self.data_at.append(time.monotonic())

        def run() -> None:
            self.answer = chat(
                node,
                model,
                tokens=tokens,
                stream=True,
                timeout_s=timeout_s,
                prompt=prompt,
                headers=headers,
                at=at,
                on_piece=count,
            )

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def result(self, timeout_s: float = 120.0) -> Answer:
        self._thread.join(timeout_s)
        assert self.answer is not None, f"the stream goes on after {timeout_s:g} s"
        return self.answer


class Load:
    """Requests one after the other, from when it is made until `stop`."""

    def __init__(
        self,
        node: Node,
        model: str,
        *,
        tokens: int = 4,
        stream: bool = False,
        pause_s: float = 0.15,
    ) -> None:
        self.answers: list[Answer] = []
        self._stopped = threading.Event()

        def run() -> None:
            while not self._stopped.is_set():
                self.answers.append(chat(node, model, tokens=tokens, stream=stream))
                self._stopped.wait(pause_s)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def stop(self) -> list[Answer]:
        self._stopped.set()
        self._thread.join(120)
        return self.answers

    @property
    def last_began_at(self) -> float:
        """When the newest request that has its answer was made, by the monotonic clock; 0.0 before
        the first answer.
        """
        answers = self.answers
        return answers[-1].began_at if answers else 0.0

    @property
    def failed(self) -> list[Answer]:
        return [answer for answer in self.answers if not answer.good]


@contextmanager
def load(node: Node, *models: str, **options: Any) -> Iterator[list[Load]]:
    """One `Load` for each of these models, through one node."""
    loads = [Load(node, model, **options) for model in models]
    try:
        yield loads
    finally:
        for one in loads:
            one.stop()


class Watch:
    """Looks at one thing on several nodes again and again and remembers when it changed.

    :ivar seen: by the node's name, (monotonic time, value), newest last.
    """

    def __init__(
        self, nodes: list[Node], look: Callable[[Node], Any], every_s: float = 0.05
    ) -> None:
        self.seen: dict[str, list[tuple[float, Any]]] = {node.name: [] for node in nodes}
        self._stopped = threading.Event()

        def run(node: Node) -> None:
            seen = self.seen[node.name]
            while not self._stopped.is_set():
                value = look(node)
                if not seen or seen[-1][1] != value:
                    seen.append((time.monotonic(), value))
                self._stopped.wait(every_s)

        self._threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in nodes]
        for thread in self._threads:
            thread.start()

    def first(self, name: str, wanted: Callable[[Any], bool], after: float) -> float | None:
        """When this node first had such a value after `after`; None when it never did."""
        return next((at for at, value in self.seen[name] if at >= after and wanted(value)), None)

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def watch(nodes: list[Node], look: Callable[[Node], Any], every_s: float = 0.05) -> Iterator[Watch]:
    watching = Watch(nodes, look, every_s)
    try:
        yield watching
    finally:
        watching.stop()


def busy(node: Node, model: str) -> int:
    """How many requests an engine works on now; 0 when it does not answer."""
    connection = unix(node, f"run/mesh-engine/{model}/llama.sock")
    try:
        connection.request("GET", "/slots")
        slots = json.loads(connection.getresponse().read())
        return sum(bool(slot["is_processing"]) for slot in slots)
    except (OSError, ValueError, TypeError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
