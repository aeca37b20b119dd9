"""From how long a load took, to the `Retry-After` of a request that comes during the next one; and
however many wait for a model, it is loaded once.

The engine of these nodes is the real one behind a gate: a script that notes each start, and waits
while a file lies there.
"""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from meshd.engine.locate import SERVER, Place
from meshd.gateway.routes import Target
from meshd.gateway.routes import decode as decode_routes
from meshd.load_times import LoadTime, LoadTimes, decode, encode
from meshd.mesh.secret import new_secret, write_secret
from meshd.paths import shipped, under
from tests.wire.test_whole_node import Node, free_port, until

TINY = shipped("models/tiny-draft.gguf")
USUAL_S = 40.0
CROWD = 20

pytestmark = [
    pytest.mark.skipif(not TINY.exists(), reason="share/models/tiny-draft.gguf is not here"),
    pytest.mark.timeout(300),
]


class Gated(Node):
    """A node of a mesh of its own, with an engine that waits at a gate."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.door = free_port()
        self.gate = root / "gate"
        self.times = under(root).load_times

    def configure(self, *, least: int) -> None:
        secret = self.root / "secret"
        write_secret(secret, new_secret(), group=None)
        self.write(
            f"models: [{{name: a, source: {TINY}, slots: 2, context: 512, "
            f"replicas: {{min: {least}, max: 1}}}}]\n"
            f"mesh: {{secret: '{secret}', listen: '127.0.0.1:{self.door}'}}\n"
            f"gateway: {{listen: ['127.0.0.1:{self.gateway}']}}\n"
            f"console: {{listen: '127.0.0.1:{self.console}'}}\n"
        )

    def starts(self) -> int:
        """How often an engine was started to serve."""
        try:
            return (self.root / "starts").read_text().count("start")
        except FileNotFoundError:
            return 0

    def ask(self, *, limit_s: float = 0, stream: bool = False) -> Any:
        """An open answer. :param limit_s: how long the client waits, 0 for as long as it takes."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.gateway}/v1/completions",
            data=json.dumps(
                {"model": "a", "prompt": "def ", "max_tokens": 4, "stream": stream}
            ).encode(),
            headers={"Content-Type": "application/json"}
            | ({"X-Request-Timeout": str(limit_s)} if limit_s else {}),
        )
        return urllib.request.urlopen(request, timeout=120)

    def target(self) -> Target:
        """Where its gateway finds the model."""
        routes = decode_routes(under(self.root).routes.read_bytes()).routes
        return next(route for route in routes if route.model == "a").targets[0]


@pytest.fixture
def node(engine: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gated]:
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        one = Gated(Path(folder))
        bin_ = one.root / "engine/bin"
        bin_.mkdir(parents=True)
        for name, path in engine.binaries:
            (bin_ / name).symlink_to(path)
        server = bin_ / SERVER
        server.unlink()
        server.write_text(
            "#!/bin/sh\n"
            'case "$*" in *--model*)\n'
            f"  echo start >> {one.root}/starts\n"
            f"  while [ -e {one.gate} ]; do sleep 0.05; done\n"
            "esac\n"
            f'exec {engine.binary(SERVER)} "$@"\n'
        )
        server.chmod(0o755)
        monkeypatch.setenv("MESHD_ENGINE_ROOT", str(one.root / "engine"))
        try:
            yield one
        finally:
            one.gate.unlink(missing_ok=True)
            if one.process is not None and one.process.poll() is None:
                one.stop()


def test_a_request_during_a_load_is_told_how_long_loads_took(node: Gated) -> None:
    node.configure(least=1)
    node.start()
    node.ready("a")
    # What it took is measured, and remembered under the model's content.
    until(node.times.exists)
    (measured,) = decode(node.times.read_bytes()).loads
    assert 0 < measured.seconds < 60
    assert measured.size_bytes == TINY.stat().st_size
    assert node.stop() == 0

    # From now on this node says that such a load takes so long; the gate keeps it loading.
    usual = LoadTimes((LoadTime(measured.content, USUAL_S, measured.size_bytes),))
    node.times.write_bytes(encode(usual))
    node.gate.touch()
    node.start()
    until(lambda: _listed(node) == ["loading"] and node.target().since_s)
    assert node.target().load_s == USUAL_S

    # Who cannot wait so long is told at once, with the time that is left.
    with pytest.raises(urllib.error.HTTPError) as caught:
        node.ask(limit_s=10).close()
    with caught.value as refused:
        error = json.load(refused)["error"]
        assert refused.code == 503
        retry_s = int(refused.headers["Retry-After"])
    assert USUAL_S / 4 < retry_s <= USUAL_S
    assert error["eta_s"] == retry_s
    assert f"about {retry_s} s" in error["message"]

    # Who can is kept informed, and served as soon as the load is done.
    with node.ask(stream=True) as answer:
        said = [answer.readline().decode()]
        assert said[0].startswith(": waiting for a: loading, about ")
        assert 0 < int(said[0].split("about ")[1].split()[0]) <= USUAL_S
        node.gate.unlink()
        said += [line.decode() for line in answer]
    assert "data: [DONE]\n" in said
    # This load was measured, too: the next prediction is the median of both.
    node.ready("a")
    until(lambda: len(decode(node.times.read_bytes()).loads) == 2)
    assert not node.target().since_s


def test_however_many_wait_for_a_model_it_is_loaded_once(node: Gated) -> None:
    node.configure(least=0)
    node.gate.touch()
    node.start()
    until(lambda: _listed(node) == ["waiting"])
    assert node.starts() == 0

    def complete(_: int) -> str:
        with node.ask() as answer:
            return str(json.load(answer)["choices"][0]["text"])

    with ThreadPoolExecutor(CROWD) as clients:
        answers = [clients.submit(complete, number) for number in range(CROWD)]
        until(lambda: node.starts() == 1)
        until(lambda: _waiting(node) == CROWD)
        node.gate.unlink()
        assert all(answer.result(60) for answer in answers)
    assert node.starts() == 1
    # It stays for a while, though nobody asks now.
    assert node.model("a")["state"] == "ready"
    assert complete(0)
    assert node.starts() == 1


def _listed(node: Gated) -> list[str]:
    """States of the models that its gateway knows; none while it does not listen."""
    try:
        return [one["mesh"]["state"] for one in node.get(node.gateway, "/v1/models")["data"]]
    except OSError:
        return []


def _waiting(node: Gated) -> float:
    url = f"http://127.0.0.1:{node.gateway}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith("meshd_num_requests_waiting")
    )
