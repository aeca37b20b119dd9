"""The child-process applier with real engines: llama-server of this checkout's engine root."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import aiohttp
import pytest

from meshd import paths as folders
from meshd.engine.locate import RPC_SERVER, SERVER, Place
from meshd.errors import UserError
from meshd.node_process import sweep
from meshd.paths import Paths
from meshd.units.child import Child, Timing
from meshd.units.engine_log import EngineLog
from meshd.units.process import ProcessApplier, log_path
from meshd.units.render import render_dropin
from meshd.units.spec import Desired, EngineKind, EngineSpec, EngineState, EngineStatus

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL = REPOSITORY / "share/models/tiny-draft.gguf"
DEADLINE_S = 60.0
QUICK = Timing(first_delay_s=0.1, last_delay_s=0.8, term_s=1.0)


@pytest.fixture(scope="module")
def server(engine: Place) -> str:
    return str(engine.binary(SERVER))


@pytest.fixture
def paths() -> Iterator[Paths]:
    # Not tmp_path: a socket's path has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="mesh") as folder:
        yield folders.under(Path(folder))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF but not really")
    return path


@pytest.fixture
async def applier(paths: Paths) -> AsyncIterator[ProcessApplier]:
    applier = ProcessApplier(paths, text=render_dropin, timing=QUICK)
    yield applier
    await applier.close()


@pytest.fixture
def llama(server: str, paths: Paths) -> Callable[..., EngineSpec]:
    def make(name: str, *, slots: int = 1, model: Path = MODEL) -> EngineSpec:
        argv = (
            *(server, "--model", str(model), "--host", str(paths.engine_socket(name))),
            *("--ctx-size", "256", "--parallel", str(slots), "--fit", "off", "--no-ui"),
            *("--threads", "1", "--cache-ram", "0"),
        )
        return EngineSpec(EngineKind.LLAMA, name, name, argv)

    return make


async def healthy(path: Path) -> None:
    async with (
        asyncio.timeout(DEADLINE_S),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as client,
    ):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get("http://engine/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


async def one(applier: ProcessApplier, name: str) -> EngineStatus:
    return next(status for status in await applier.observe() if status.name == name)


async def until(
    applier: ProcessApplier, name: str, wanted: Callable[[EngineStatus], bool]
) -> EngineStatus:
    async with asyncio.timeout(DEADLINE_S):
        while not wanted(status := await one(applier, name)):
            await applier.changed()
    return status


def lives(pid: int | None) -> bool:
    assert pid is not None
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


async def gone(pid: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while lives(pid):
            await asyncio.sleep(0.02)


async def test_only_what_changed_restarts(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths
) -> None:
    first = await applier.apply(Desired(1, (llama("a"), llama("b"))))
    assert first.started == ("mesh-llama@a.service", "mesh-llama@b.service")
    assert first.errors == ()
    before = {status.name: status for status in await applier.observe()}
    await asyncio.gather(healthy(paths.engine_socket("a")), healthy(paths.engine_socket("b")))
    assert paths.engine_socket("a").parent.stat().st_mode & 0o777 == 0o700

    same = await applier.apply(Desired(2, (llama("b"), llama("a"))))
    assert (same.generation, same.started, same.stopped, same.restarted) == (2, (), (), ())
    assert {status.name: status for status in await applier.observe()} == before

    changed = await applier.apply(Desired(3, (llama("a", slots=2), llama("b"))))
    assert changed.restarted == ("mesh-llama@a.service",)
    after = {status.name: status for status in await applier.observe()}
    assert after["b"] == before["b"]
    assert after["a"].pid != before["a"].pid
    assert not lives(before["a"].pid)
    assert after["a"].text == render_dropin(llama("a", slots=2), paths)
    await healthy(paths.engine_socket("a"))

    ended = await applier.apply(Desired(4, (llama("b"),)))
    assert ended.stopped == ("mesh-llama@a.service",)
    assert not lives(after["a"].pid)
    assert lives(before["b"].pid)
    assert not paths.engine_socket("a").parent.exists()


async def test_a_killed_engine_comes_back(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths
) -> None:
    await applier.apply(Desired(1, (llama("a"),)))
    await healthy(paths.engine_socket("a"))
    pid = (await one(applier, "a")).pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    waiting = await until(applier, "a", lambda status: status.state is EngineState.BACKOFF)
    assert waiting.detail.startswith("killed by SIGKILL")
    assert waiting.pid is None
    back = await until(applier, "a", lambda status: status.state is EngineState.RUNNING)
    assert back.restarts == 1
    assert back.pid != pid
    # The dead one left its socket behind, on which llama-server would refuse to listen.
    await healthy(paths.engine_socket("a"))


async def test_an_rpc_server_leaves_the_socket_of_an_engine_of_its_name_alone(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths, engine: Place
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = str(engine.binary(RPC_SERVER))
    rpc = EngineSpec(
        EngineKind.RPC, "a", "a", (program, "--host", "127.0.0.1", "--port", str(port))
    )
    began = await applier.apply(Desired(1, (llama("a"), rpc)))
    assert began.errors == ()
    assert [status.state for status in await applier.observe()] == [EngineState.RUNNING] * 2
    await healthy(paths.engine_socket("a"))
    ended = await applier.apply(Desired(2, (llama("a"),)))
    assert ended.stopped == (rpc.unit,)
    await healthy(paths.engine_socket("a"))


async def test_no_rpc_server_starts_on_what_another_left_half_written(
    paths: Paths, engine: Place
) -> None:
    """Which it would believe; meshd's own assembly sees to that, before restarts too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    argv = (str(engine.binary(RPC_SERVER)), "--host", "127.0.0.1", "--port", str(port), "-c")
    cache = (("LLAMA_CACHE", str(paths.rpc_cache)),)
    applier = ProcessApplier(paths, text=render_dropin, timing=QUICK, prepare=partial(sweep, paths))
    try:
        await applier.apply(Desired(1, (EngineSpec(EngineKind.RPC, "a", "a", argv, cache),)))
        first = await until(applier, "a", lambda status: status.state is EngineState.RUNNING)
        assert first.pid is not None
        half = paths.rpc_cache / "rpc/0123456789abcdef"
        half.write_bytes(b"half a tensor")
        os.kill(first.pid, signal.SIGKILL)
        await until(applier, "a", lambda status: status.pid not in (None, first.pid))
        assert not half.exists()
    finally:
        await applier.close()


async def test_an_engine_that_must_not_start_is_tried_again_and_says_why(
    paths: Paths, llama: Callable[..., EngineSpec]
) -> None:
    obstacles = [UserError("the cache cannot be kept"), OSError("disk full")]

    def prepare(spec: EngineSpec) -> None:
        if obstacles:
            raise obstacles.pop(0)

    applier = ProcessApplier(paths, text=render_dropin, timing=QUICK, prepare=prepare)
    try:
        outcome = await applier.apply(Desired(1, (llama("a"),)))
        assert outcome.errors == (
            "mesh-llama@a.service: cannot be started: the cache cannot be kept",
        )
        back = await until(applier, "a", lambda status: status.state is EngineState.RUNNING)
        assert back.restarts == 2
    finally:
        await applier.close()


async def test_an_engine_that_cannot_run_is_tried_less_and_less(
    llama: Callable[..., EngineSpec], paths: Paths, broken: Path
) -> None:
    clock = asyncio.get_running_loop().time
    changes: list[tuple[float, EngineStatus]] = []
    tried_often = asyncio.Event()

    def changed() -> None:
        changes.append((clock(), child.status))
        if child.status.restarts == 4:
            tried_often.set()

    child = Child(
        llama("a", model=broken),
        "text",
        socket=paths.engine_socket("a"),
        home=paths.state / "home",
        log=EngineLog(paths.run / "a.log"),
        timing=QUICK,
        changed=changed,
    )
    await child.start()
    async with asyncio.timeout(DEADLINE_S):
        await tried_often.wait()
    await child.stop()
    pauses = [
        later - sooner
        for (sooner, status), (later, _) in pairwise(changes)
        if status.state is EngineState.BACKOFF
    ]
    # asyncio's timers may fire one tick of the clock early.
    promised = [QUICK.delay_s(count) for count in range(1, 5)]
    assert promised == sorted(promised)
    assert all(pause >= wait - 0.01 for pause, wait in zip(pauses, promised, strict=False))
    assert len(pauses) >= 4
    assert changes[-1][1].state is EngineState.STOPPED


async def test_an_engine_that_cannot_run_says_why(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths, broken: Path
) -> None:
    await applier.apply(Desired(1, (llama("a", model=broken),)))
    waiting = await until(applier, "a", lambda status: status.state is EngineState.BACKOFF)
    assert waiting.detail.startswith("exit code 1: ")
    assert "error" in waiting.detail or "failed" in waiting.detail
    assert str(broken) in log_path(paths, EngineKind.LLAMA, "a").read_text()
    # It can be ended while it waits, at once.
    async with asyncio.timeout(5):
        outcome = await applier.apply(Desired(2))
    assert outcome.stopped == ("mesh-llama@a.service",)
    assert await applier.observe() == ()


async def test_a_hung_engine_is_ended_and_a_strangers_is_not(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths
) -> None:
    spec = llama("a")
    theirs = paths.run / "theirs.sock"
    await applier.apply(Desired(1, (spec,)))
    argv = [str(theirs) if word == str(paths.engine_socket("a")) else word for word in spec.argv]
    stranger = await asyncio.create_subprocess_exec(
        *argv, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await asyncio.gather(healthy(paths.engine_socket("a")), healthy(theirs))
        hung = (await one(applier, "a")).pid
        assert hung is not None
        os.kill(hung, signal.SIGSTOP)
        clock = asyncio.get_running_loop().time
        began = clock()
        seen: list[EngineState] = []

        async def watch() -> None:
            while True:
                await applier.changed()
                seen.extend(status.state for status in await applier.observe())

        watching = asyncio.create_task(watch())
        await applier.apply(Desired(2))
        watching.cancel()
        assert clock() - began >= QUICK.term_s
        assert not lives(hung)
        assert EngineState.STOPPING in seen
        assert await applier.observe() == ()
        await healthy(theirs)
    finally:
        stranger.kill()
        await stranger.wait()


async def test_a_stale_socket_is_no_obstacle(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths
) -> None:
    path = paths.engine_socket("a")
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(path))
    await applier.apply(Desired(1, (llama("a"),)))
    await healthy(path)
    assert (await one(applier, "a")).restarts == 0


async def test_engines_die_with_us(server: str, paths: Paths) -> None:
    program = """
import asyncio, sys
from pathlib import Path
from meshd import paths
from meshd.units.process import ProcessApplier
from meshd.units.spec import Desired, EngineKind, EngineSpec
async def main():
    applier = ProcessApplier(paths.under(Path(sys.argv[1])), text=lambda spec, paths: "text")
    await applier.apply(Desired(1, (EngineSpec(EngineKind.LLAMA, "a", "a", tuple(sys.argv[2:])),)))
    print((await applier.observe())[0].pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""
    path = paths.engine_socket("a")
    brain = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, str(paths.run.parent), server),
        *("--model", str(MODEL), "--host", str(path), "--ctx-size", "256", "--no-ui"),
        stdout=asyncio.subprocess.PIPE,
        cwd=REPOSITORY,
    )
    assert brain.stdout is not None
    async with asyncio.timeout(DEADLINE_S):
        pid = int(await brain.stdout.readline())
    await healthy(path)
    brain.kill()
    await brain.wait()
    await gone(pid)


async def test_what_cannot_start_is_an_error_of_that_engine_only(
    applier: ProcessApplier, llama: Callable[..., EngineSpec], paths: Paths
) -> None:
    long = replace(llama("a"), name="n" * 63)
    deep = replace(paths, engines=paths.engines / ("d" * 60))
    other = ProcessApplier(deep, text=render_dropin, timing=QUICK)
    outcome = await other.apply(Desired(1, (long,)))
    assert outcome.started == ()
    assert len(outcome.errors) == 1
    assert "107 bytes" in outcome.errors[0]
    assert await other.observe() == ()

    missing = replace(llama("gone"), argv=("/nonexistent/llama-server",))
    outcome = await applier.apply(Desired(1, (missing, llama("b"))))
    await healthy(paths.engine_socket("b"))
    waiting = await until(applier, "gone", lambda status: status.state is EngineState.BACKOFF)
    assert "/nonexistent/llama-server" in waiting.detail
