"""A whole node without systemd: real files, real engine, real requests, and every verb."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshd.engine.locate import Place
from meshd.paths import shipped

MODEL = shipped("models/tiny-draft.gguf")
DEADLINE_S = 60.0

pytestmark = [
    pytest.mark.skipif(not MODEL.exists(), reason="share/models/tiny-draft.gguf is not here"),
    pytest.mark.timeout(300),
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(what: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """The first true answer of `what`."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"not within {deadline_s} s")


class Node:
    """One `meshd run` below a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "etc/mesh.yaml"
        self.gateway = free_port()
        self.console = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.config.parent.mkdir()

    def text(self, *, slots: int = 2, second: bool = False, console: int | None = None) -> str:
        models = f"  - {{name: a, source: {MODEL}, slots: {slots}, context: 512}}\n"
        if second:
            models += f"  - {{name: b, source: {MODEL}, slots: 1, context: 512}}\n"
        return (
            f"models:\n{models}"
            f"gateway: {{listen: ['127.0.0.1:{self.gateway}']}}\n"
            f"console: {{listen: '127.0.0.1:{console or self.console}'}}\n"
        )

    def write(self, text: str) -> None:
        self.config.write_text(text)

    def start(self) -> None:
        log = (self.root / "node.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meshd.cli.main", "--root", str(self.root), "run"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        log.close()

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(40)

    def meshd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "meshd.cli.main", "--root", str(self.root), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def status(self) -> dict[str, Any]:
        try:
            answer = self.get(self.console, "/api/status")
        except OSError:
            return {}
        return answer if "models" in answer else {}

    def model(self, name: str) -> dict[str, Any]:
        return next((m for m in self.status().get("models", []) if m["name"] == name), {})

    def ready(self, *names: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            status = self.status()
            ready = {m["name"] for m in status.get("models", []) if m["state"] == "ready"}
            return status if ready >= set(names) else None

        return until(look)

    def get(self, port: int, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def complete(self, model: str) -> str:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway}/v1/completions",
            data=json.dumps({"model": model, "prompt": "def ", "max_tokens": 4}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            text: str = json.load(response)["choices"][0]["text"]
            return text

    def serves(self, model: str) -> bool:
        try:
            return bool(self.complete(model))
        except (OSError, urllib.error.HTTPError):
            return False

    def log(self) -> str:
        return (self.root / "node.log").read_text("utf-8", "replace")


@pytest.fixture
def node(engine: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    if engine.origin == "root":
        monkeypatch.setenv("MESHD_ENGINE_ROOT", str(engine.root))
    # Sockets' paths are short, and pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        one = Node(Path(folder))
        one.write(one.text())
        one.start()
        try:
            one.ready("a")
            yield one
        finally:
            if one.process is not None and one.process.poll() is None:
                one.stop()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_serves_and_leaves_nothing_behind(node: Node) -> None:
    until(lambda: node.serves("a"))
    pid = node.model("a")["pid"]
    listed = node.get(node.gateway, "/v1/models")["data"]
    assert [model["id"] for model in listed] == ["a"]
    assert node.meshd("status").returncode == 0
    assert node.stop() == 0
    until(lambda: not alive(pid))
    with pytest.raises(OSError, match="refused"):
        node.complete("a")
    stopped = node.meshd("status")
    assert stopped.returncode == 1
    assert "does not run" in stopped.stderr


def test_plan_and_apply_change_only_what_changed(node: Node) -> None:
    assert node.meshd("plan").returncode == 0
    first = node.model("a")["pid"]
    node.write(node.text(second=True))
    planned = node.meshd("plan", "--json")
    assert planned.returncode == 2
    (change,) = json.loads(planned.stdout)["changes"]
    assert (change["action"], change["unit"]) == ("start", "mesh-llama@b.service")
    assert change["load_bytes"] == MODEL.stat().st_size
    applied = node.meshd("apply")
    assert applied.returncode == 0, applied.stderr
    assert "serving 2 of 2" in applied.stdout
    assert node.model("a")["pid"] == first
    until(lambda: node.serves("b"))

    second = node.model("b")["pid"]
    node.write(node.text(second=True, slots=3))
    assert node.meshd("apply").returncode == 0
    assert node.model("a")["pid"] != first
    assert node.model("a")["slots"] == 3
    assert node.model("b")["pid"] == second


def test_sighup_moves_the_console_and_restarts_nothing(node: Node) -> None:
    assert node.process is not None
    pid = node.model("a")["pid"]
    port = free_port()
    node.write(node.text(console=port))
    node.process.send_signal(signal.SIGHUP)
    node.console = port
    until(lambda: node.model("a").get("pid") == pid)


def test_a_bad_file_is_refused_everywhere_and_nothing_stops(node: Node) -> None:
    assert node.process is not None
    pid = node.model("a")["pid"]
    node.write(node.text().replace("slots", "slotts"))
    for verb in ("check", "plan", "apply"):
        refused = node.meshd(verb)
        assert refused.returncode == 1
        text = refused.stdout + refused.stderr
        assert f"{node.config}:2:" in text
        assert "slots" in text
        assert "Traceback" not in text
    node.process.send_signal(signal.SIGHUP)
    until(lambda: "reload rejected" in node.status().get("sentence", ""))
    assert node.model("a")["pid"] == pid
    assert node.serves("a")


def test_a_trial_is_undone_when_nobody_keeps_it(node: Node) -> None:
    candidate = node.root / "new.yaml"
    candidate.write_text(node.text(second=True))
    tried = node.meshd("try", str(candidate), "--timeout", "3")
    assert tried.returncode == 3, tried.stderr
    assert "reverted" in tried.stdout
    until(lambda: [m["name"] for m in node.status().get("models", [])] == ["a"])
    assert node.config.read_text() == node.text()


def test_a_kept_trial_is_written_and_rollback_undoes_it(node: Node) -> None:
    until((node.root / "state/generations/00000001.json").exists)
    candidate = node.root / "new.yaml"
    candidate.write_text(node.text(second=True))
    trial = subprocess.Popen(
        [sys.executable, "-m", "meshd.cli.main", "--root", str(node.root), "try", str(candidate)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: node.status().get("trial_ends_s"))
    kept = node.meshd("try", "--keep")
    assert kept.returncode == 0, kept.stderr
    output, _ = trial.communicate(timeout=30)
    assert trial.returncode == 0
    assert "kept" in output
    assert node.config.read_text() == candidate.read_text()
    node.ready("a", "b")
    until(lambda: len(json.loads(node.meshd("rollback", "--list", "--json").stdout)) == 2)

    back = node.meshd("rollback")
    assert back.returncode == 0, back.stderr
    assert node.config.read_text() == node.text()
    until(lambda: [m["name"] for m in node.status().get("models", [])] == ["a"])


def test_a_killed_engine_comes_back_and_is_not_routed_to_meanwhile(node: Node) -> None:
    pid = node.model("a")["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: node.model("a").get("pid") not in (pid, None))
    node.ready("a")
    until(lambda: node.serves("a"))
    assert node.model("a")["restarts"] == 1


def test_an_engine_that_hangs_is_killed_and_answers_again(node: Node) -> None:
    pid = node.model("a")["pid"]
    os.kill(pid, signal.SIGSTOP)
    began_s = time.monotonic()
    until(lambda: node.model("a").get("pid") not in (pid, None))
    node.ready("a")
    until(lambda: node.serves("a"))
    print(f"served again {time.monotonic() - began_s:.1f} s after it was frozen")
    assert not alive(pid)
    assert "hung: it has not answered" in node.log()
    # Nobody changed it: it is what it was, and stays.
    assert node.meshd("apply").returncode == 0
    again = node.model("a")["pid"]
    node.ready("a")
    assert node.model("a")["pid"] == again


def test_kill_9_of_the_node_leaves_no_process(node: Node) -> None:
    assert node.process is not None
    pid = node.model("a")["pid"]
    node.process.kill()
    node.process.wait(10)
    until(lambda: not alive(pid))
    node.start()
    node.ready("a")
    until(lambda: node.serves("a"))


def test_a_second_meshd_on_the_same_folders_is_refused(node: Node) -> None:
    second = node.meshd("run")
    assert second.returncode == 1
    assert "another meshd runs" in second.stderr


def test_a_bad_file_at_start_falls_back_to_the_last_good_one(node: Node) -> None:
    until((node.root / "state/generations/00000001.json").exists)
    node.stop()
    node.write("models: [\n")
    node.start()
    status = node.ready("a")
    assert "generation 1" in status["sentence"]
    assert node.meshd("status").returncode == 3
    until(lambda: node.serves("a"))
