"""Draining real nodes: a running answer ends, new requests go elsewhere, and engines stop."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from meshd.engine.locate import Place
from meshd.mesh.secret import new_secret, write_secret
from meshd.paths import shipped
from tests.wire.test_whole_node import Node, alive, free_port, until

TINY = shipped("models/tiny.gguf")
TOKENS = 800

pytestmark = [
    pytest.mark.skipif(not TINY.exists(), reason="share/models/tiny.gguf is not here"),
    pytest.mark.timeout(300),
]


class Meshed(Node):
    """A node of a mesh on this machine."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.door = free_port()

    @property
    def name(self) -> str:
        return self.root.name

    def serves_itself(self, model: str) -> bool:
        found = self.model(model)
        return found.get("state") == "ready" and found.get("pid") is not None


@pytest.fixture
def folder(engine: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if engine.origin == "root":
        monkeypatch.setenv("MESHD_ENGINE_ROOT", str(engine.root))
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        yield Path(folder)


@contextmanager
def started(*nodes: Node) -> Iterator[None]:
    with ExitStack() as stack:
        for node in nodes:
            node.start()
            stack.callback(_stop, node)
        yield


def _stop(node: Node) -> None:
    if node.process is not None and node.process.poll() is None:
        node.stop()


def _lone(folder: Path) -> Node:
    node = Node(folder)
    node.write(
        f"models: [{{name: a, source: {TINY}, slots: 2, context: 1024}}]\n"
        f"gateway: {{listen: ['127.0.0.1:{node.gateway}']}}\n"
        f"console: {{listen: '127.0.0.1:{node.console}'}}\n"
    )
    return node


def _pair(folder: Path) -> tuple[Meshed, Meshed]:
    secret = folder / "secret"
    write_secret(secret, new_secret(), group=None)
    nodes = []
    for name in ("one", "two"):
        (folder / name).mkdir()
        nodes.append(Meshed(folder / name))
    for node in nodes:
        node.write(
            f"models: [{{name: a, source: {TINY}, slots: 2, context: 1024}}]\n"
            f"node: {{name: {node.name}}}\n"
            f"mesh: {{secret: '{secret}', listen: '127.0.0.1:{node.door}', "
            f"peers: ['127.0.0.1:{nodes[0].door}']}}\n"
            f"gateway: {{listen: ['127.0.0.1:{node.gateway}']}}\n"
            f"console: {{listen: '127.0.0.1:{node.console}'}}\n"
        )
    return nodes[0], nodes[1]


@dataclass
class Stream:
    """A long answer that is read on a thread of its own."""

    node: Node
    lines: list[str] = field(default_factory=list)
    problem: str = ""

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        body = {"model": "a", "prompt": "def ", "max_tokens": TOKENS, "stream": True}
        try:
            with _open(self.node, {**body, "ignore_eos": True}, timeout_s=120) as response:
                self.lines.extend(line.decode().strip() for line in response)
        except OSError as error:
            self.problem = str(error)

    @property
    def runs(self) -> bool:
        return self.thread.is_alive()

    def ended_well(self) -> None:
        """And whole: with all of its tokens, the last of them said to be that."""
        self.thread.join(60)
        assert not self.runs
        assert self.problem == ""
        events = [line for line in self.lines if line.startswith("data: ")]
        assert events[-1] == "data: [DONE]"
        assert not any('"error"' in event for event in events)
        said = json.loads(events[-2].removeprefix("data: "))
        assert said["timings"]["predicted_n"] == TOKENS


def _open(node: Node, body: object, *, timeout_s: float = 30) -> Any:
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.gateway}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=timeout_s)


def _answered_by(node: Node) -> str:
    """The name of the node that answers a short request; "" where none does."""
    try:
        with _open(node, {"model": "a", "prompt": "def ", "max_tokens": 2}) as response:
            return str(response.headers["X-Mesh-Node"])
    except OSError:
        return ""


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    """The process gets a twentieth of its time, so that what it does takes until we are done."""
    done = threading.Event()

    def hold() -> None:
        # It may end meanwhile.
        with suppress(ProcessLookupError):
            while not done.wait(0.005):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.1)
                os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _begun(node: Node) -> Stream:
    until(lambda: node.serves("a"))
    stream = Stream(node)
    until(lambda: len(stream.lines) > 2 or stream.problem)
    assert stream.runs
    return stream


def test_new_requests_move_and_the_running_one_ends_by_itself(folder: Path) -> None:
    one, two = _pair(folder)
    with started(one, two):
        until(lambda: one.serves_itself("a") or two.serves_itself("a"))
        first, second = (one, two) if one.serves_itself("a") else (two, one)
        until(lambda: _answered_by(first) == first.name and _answered_by(second) == first.name)
        pid = first.model("a")["pid"]
        stream = _begun(first)
        with slowed(pid):
            begun = first.meshd("drain")
            assert begun.returncode == 0, begun.stderr
            assert "draining" in begun.stdout
            until(lambda: second.serves_itself("a"))
            for gateway in (first, second):
                until(lambda gateway=gateway: _answered_by(gateway) == second.name)
            assert stream.runs
            assert alive(pid), "its engine waits for the answer"
            # The gateway says once a second what runs: the last short one may still be in that.
            until(lambda: "draining, 1 request runs" in first.meshd("status").stdout)
        waited = first.meshd("drain", "--wait")
        assert waited.returncode == 0, waited.stdout + waited.stderr
        assert "every answer ended by itself" in waited.stdout
        assert f"served by {second.name}" in waited.stdout
        stream.ended_well()
        assert not alive(pid)
        assert "draining" in second.meshd("mesh", "members").stdout

        assert first.meshd("drain", "--undo").returncode == 0
        moved_back = second.meshd("drain", "--wait", "--deadline", "60s")
        assert moved_back.returncode == 0, moved_back.stdout + moved_back.stderr
        until(lambda: _answered_by(second) == first.name)


def test_a_lone_node_refuses_what_is_new_and_ends_what_runs(folder: Path) -> None:
    node = _lone(folder)
    with started(node):
        node.ready("a")
        pid = node.model("a")["pid"]
        stream = _begun(node)
        with slowed(pid):
            assert node.meshd("drain").returncode == 0
            refused = until(lambda: _refusal(node))
            assert (refused.status, refused.code) == (503, "model_drained")
            assert "meshd drain --undo" in refused.message
            assert int(refused.retry_after) > 0
            assert stream.runs
        assert node.meshd("drain", "--wait").returncode == 0
        stream.ended_well()
        assert not alive(pid)

        assert node.stop() == 0
        node.start()
        until(lambda: node.status().get("drain"))
        status = node.meshd("status")
        assert status.returncode == 3
        assert "drained" in status.stdout, "a restart is no reason to serve again"
        assert node.model("a")["pid"] is None
        undone = node.meshd("drain", "--undo")
        assert undone.returncode == 0, undone.stderr
        until(lambda: node.serves("a"))


def test_at_its_deadline_what_still_runs_is_cut_with_an_error(folder: Path) -> None:
    node = _lone(folder)
    with started(node):
        node.ready("a")
        stream = _begun(node)
        with slowed(node.model("a")["pid"]):
            # The gateway says once a second what runs.
            until(lambda: "1 request runs" in node.meshd("drain", "--deadline", "1min").stdout)
            done = node.meshd("drain", "--wait", "--deadline", "0s")
            assert done.returncode == 3
            assert "1 answer was cut off" in done.stdout
    stream.thread.join(30)
    assert any('"error"' in line for line in stream.lines)
    assert "data: [DONE]" not in stream.lines


def test_who_stops_a_node_lets_running_answers_end(folder: Path) -> None:
    node = _lone(folder)
    with started(node):
        node.ready("a")
        pid = node.model("a")["pid"]
        stream = _begun(node)
        assert node.stop() == 0
        stream.ended_well()
        until(lambda: not alive(pid))


@dataclass(frozen=True)
class Refusal:
    status: int
    code: str
    message: str
    retry_after: str


def _refusal(node: Node) -> Refusal | None:
    try:
        with _open(node, {"model": "a", "prompt": "def ", "max_tokens": 2}):
            return None
    except urllib.error.HTTPError as error:
        said = json.load(error)["error"]
        return Refusal(error.code, said["code"], said["message"], error.headers["Retry-After"])
