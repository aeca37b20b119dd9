"""Real engines that hang, stall, or only take their time, as the monitor sees them."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from meshd.engine.locate import RPC_SERVER, SERVER, Place
from meshd.health import HealthMonitor, Watched
from meshd.models.gguf_facts import read_facts
from meshd.progress import Health, Verdict, Work
from tests.wire.gateway_harness import until
from tests.wire.llama_harness import MODEL, Llama, llama

pytestmark = [
    pytest.mark.skipif(not MODEL.exists(), reason="share/models/tiny.gguf is not here"),
    pytest.mark.timeout(300),
]
# The prompt is far beyond what the model was trained for: it is to take long, not to make sense.
LONG = (
    *("--override-kv", "llama.context_length=int:65536", "--ctx-size", "65536", "--parallel", "1"),
    # The harness's engines embed, too, and so take no more at once than fits a micro-batch.
    *("--batch-size", "2048", "--ubatch-size", "2048"),
)


@pytest.fixture
def server(engine: Place) -> Path:
    found = engine.binary(SERVER)
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    assert len(str(tmp_path)) < 80, "too long for a socket's path"
    return tmp_path


class Watch:
    """One engine under a monitor, and all that the monitor ever said of it."""

    def __init__(self, one: Llama, folder: Path) -> None:
        assert one.process is not None
        self.engine = Watched("tiny", one.process.pid, one.path, folder / "no-guard")
        self.said: list[Verdict] = []
        self.monitor = HealthMonitor(self._changed)

    def _changed(self) -> None:
        found = self.monitor.verdict(self.engine.unit, self.engine.pid)
        assert found is not None
        self.said.append(found)

    def is_now(self, health: Health) -> bool:
        return bool(self.said) and self.said[-1].health is health


@asynccontextmanager
async def watch(one: Llama, folder: Path, work: Work | None = None) -> AsyncIterator[Watch]:
    watching = Watch(one, folder)
    watching.monitor.watch({watching.engine}, {"tiny": work or Work()})
    try:
        await until(lambda: watching.is_now(Health.FINE), 20)
        yield watching
    finally:
        await watching.monitor.close()


def sockets() -> int:
    """How many this process has open."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count


async def test_a_frozen_engine_is_hung_and_nothing_piles_up_before_it(
    server: Path, folder: Path
) -> None:
    async with (
        llama(server, folder / "llama.sock", ("--metrics",)) as one,
        watch(one, folder) as watching,
    ):
        before = sockets()
        one.stop()
        took_s = await until(lambda: watching.is_now(Health.HUNG), 30)
        print(f"hung after {took_s:.1f} s")
        assert took_s > 8
        assert sockets() <= before + 1
        one.go_on()
        # Had nobody restarted it, it would serve again.
        await until(lambda: watching.is_now(Health.FINE), 10)


def work_of_tiny(batch: int) -> Work:
    facts = read_facts(MODEL)
    return Work(
        token_flop=2.0 * facts.parameters,
        depth_flop=sum(
            2.0 * layer.heads * (facts.key_length + facts.value_length) for layer in facts.layers
        ),
        batch=batch,
        weight_bytes=facts.file_bytes,
    )


async def test_a_long_prompt_is_no_stall(
    server: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Batches of this prompt take seconds: as to the floors below, so would those of 100k tokens on
    # a slow machine be to the real ones.
    monkeypatch.setattr("meshd.progress._ALLOWANCE_LEAST_S", 0.5)
    monkeypatch.setattr("meshd.progress._FIRST_ALLOWANCE_S", 0.5)
    monkeypatch.setattr("meshd.health._READY_INTERVAL_S", 0.1)
    batch = 2048
    prompt = " ".join(f"the quick brown fox {number}" for number in range(900))
    body = json.dumps({"prompt": prompt, "n_predict": 8}).encode()
    async with (
        llama(server, folder / "llama.sock", (*LONG, "--metrics")) as one,
        watch(one, folder, work_of_tiny(batch)) as watching,
    ):
        timeout = aiohttp.ClientTimeout(total=200)
        began_s = time.monotonic()
        connector = aiohttp.UnixConnector(str(one.path))
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as client,
            client.post("http://engine/completion", data=body) as response,
        ):
            answer = await response.json()
        took_s = time.monotonic() - began_s
        read = answer["tokens_evaluated"]
        print(f"{read} tokens in {took_s:.1f} s, {read // batch} whole batches")
        assert read > 3 * batch
        assert took_s > 4 * 0.5 * read / batch, "too fast to try anything"
        assert [one.health for one in watching.said] == [Health.FINE]
        track = watching.monitor._tracks[watching.engine]
        assert track.proven, "no batch was seen to be done"


@pytest.fixture
def rpc_server(engine: Place) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A real rpc-server on a port of loopback."""
    program = engine.binary(RPC_SERVER)
    assert program is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        (str(program), "-H", "127.0.0.1", "-p", str(port)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline_s = time.monotonic() + 30
        # Looked up rather than tried: a probe would take its one connection. 0A is LISTEN.
        listening = re.compile(rf":{port:04X} 00000000:0000 0A ")
        while not listening.search(Path("/proc/net/tcp").read_text()):
            assert time.monotonic() < deadline_s
            assert process.poll() is None
            time.sleep(0.02)
        try:
            yield process, port
        finally:
            process.kill()


async def test_an_engine_whose_peer_is_frozen_stalls_behind_a_healthy_health(
    server: Path,
    folder: Path,
    rpc_server: tuple[subprocess.Popen[bytes], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a fast machine the answer would be at its end before it had been looked at twice.
    monkeypatch.setattr("meshd.health._READY_INTERVAL_S", 0.1)
    peer, port = rpc_server
    options = ("--metrics", "--rpc", f"127.0.0.1:{port}", "--device", "RPC0", "-ngl", "all")
    body = {"prompt": "def ", "n_predict": -1, "ignore_eos": True, "stream": True}
    async with (
        llama(server, folder / "llama.sock", options) as one,
        watch(one, folder, work_of_tiny(2048)) as watching,
    ):
        connector = aiohttp.UnixConnector(str(one.path))
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.post("http://engine/completion", json=body) as response,
        ):
            await response.content.readline()
            # The monitor, too, is to have seen it at work.
            track = watching.monitor._tracks
            await until(lambda: track[watching.engine].step_s > 0, 20)
            peer.send_signal(signal.SIGSTOP)
            took_s = await until(lambda: watching.is_now(Health.STALLED), 60)
            print(f"stalled after {took_s:.1f} s: {watching.said[-1].why}")
            assert await one.healthy()
            assert not watching.monitor.ready("tiny", watching.engine.pid)
            peer.send_signal(signal.SIGCONT)
            await until(lambda: watching.is_now(Health.FINE), 20)
