"""The monitor against a pretended engine and guard, on real sockets."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from meshd import health
from meshd.guard.status import End, GuardStatus, PeerStatus
from meshd.health import HealthMonitor, Watched
from meshd.progress import Health, Work
from tests.unit.test_engine_counts import METRICS


@dataclass
class Engine:
    """:ivar open: questions that it has not answered; ``most`` at once.

    :ivar deaf: what it does not answer. :ivar status: of `/health`.
    """

    status: int = 200
    metrics: str = METRICS
    slots: str = "[]"
    guard: GuardStatus | None = None
    deaf: tuple[str, ...] = ()
    open: int = 0
    most: int = 0
    asked: int = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if request.path in self.deaf:
                await asyncio.sleep(60)
            bodies = {"/metrics": self.metrics, "/slots": self.slots}
            if request.path == "/status":
                return web.Response(body=msgspec.json.encode(self.guard))
            return web.Response(text=bodies.get(request.path, "{}"), status=self.status)
        finally:
            self.open -= 1


@pytest.fixture
async def engine() -> AsyncIterator[tuple[Engine, Watched]]:
    one = Engine()
    app = web.Application()
    app.router.add_get("/{any:.*}", one.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    # Sockets' paths are short, and pytest's own folders are not.
    with tempfile.TemporaryDirectory(prefix="meshd-") as folder:
        watched = Watched("u", 7, Path(folder) / "llama.sock", Path(folder) / "guard.sock")
        await web.UnixSite(runner, str(watched.socket)).start()
        yield one, watched
        await runner.cleanup()


@asynccontextmanager
async def watching(watched: Watched) -> AsyncIterator[HealthMonitor]:
    monitor = HealthMonitor(lambda: None)
    monitor.watch({watched}, {"u": Work()})
    try:
        yield monitor
    finally:
        await monitor.close()


async def becomes(monitor: HealthMonitor, state: Health) -> None:
    async with asyncio.timeout(10):
        while (found := monitor.verdict("u", 7)) is None or found.health is not state:
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_READY_INTERVAL_S", "_LOADING_INTERVAL_S", "_MISSED_INTERVAL_S"):
        monkeypatch.setattr(health, name, 0.01)
    for name in ("_DEADLINE_S", "_COUNTS_DEADLINE_S"):
        monkeypatch.setattr(health, name, 0.2)


async def test_it_is_ready_when_it_says_so(engine: tuple[Engine, Watched]) -> None:
    one, watched = engine
    one.status = 503
    async with watching(watched) as monitor:
        await becomes(monitor, Health.LOADING)
        assert not monitor.ready("u", 7)
        one.status = 200
        await becomes(monitor, Health.FINE)
        assert monitor.ready("u", 7)
        assert not monitor.ready("u", 8)


async def test_requests_without_progress_are_a_stall(
    engine: tuple[Engine, Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshd.progress._ALLOWANCE_LEAST_S", 0.3)
    one, watched = engine
    async with watching(watched) as monitor:
        await becomes(monitor, Health.FINE)
        await becomes(monitor, Health.STALLED)
        one.metrics = METRICS.replace("n_decode_total 3", "n_decode_total 4")
        await becomes(monitor, Health.FINE)


@pytest.mark.parametrize("path", ["/metrics", "/slots"])
async def test_counts_that_do_not_come_are_waited_for_one_at_a_time(
    engine: tuple[Engine, Watched], path: str
) -> None:
    one, watched = engine
    one.deaf = (path,)
    async with watching(watched) as monitor:
        await becomes(monitor, Health.FINE)
        async with asyncio.timeout(10):
            while one.asked < 8:
                await asyncio.sleep(0.01)
        assert one.most == 1
        assert monitor.ready("u", 7)


@pytest.mark.parametrize("metrics", ["no metrics {", "x" * (health._BODY_MAX_BYTES + 1), ""])
async def test_counts_that_are_none_are_not_judged_by(
    engine: tuple[Engine, Watched], metrics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshd.progress._ALLOWANCE_LEAST_S", 0.01)
    one, watched = engine
    one.metrics = metrics
    async with watching(watched) as monitor:
        await becomes(monitor, Health.FINE)
        seen = one.asked
        async with asyncio.timeout(10):
            while one.asked < seen + 8:
                await asyncio.sleep(0.01)
        assert monitor.ready("u", 7)


async def test_what_its_guard_waits_for_counts(engine: tuple[Engine, Watched]) -> None:
    one, watched = engine
    one.metrics = METRICS.replace("requests_processing 1", "requests_processing 0")
    peer = PeerStatus("n1", "127.0.0.1:9404", reached=True, allowance_s=5.0)
    one.guard = GuardStatus("m", End.HOST, 0.0, peers=(peer,))
    async with AsyncExitStack() as stack:
        app = web.Application()
        app.router.add_get("/status", one.answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        monitor = await stack.enter_async_context(watching(watched))
        await becomes(monitor, Health.FINE)
        await web.UnixSite(runner, str(watched.guard)).start()
        asked = one.asked
        async with asyncio.timeout(10):
            while one.asked < asked + 8:
                await asyncio.sleep(0.01)
        assert monitor.ready("u", 7)
        late = PeerStatus("n2", "127.0.0.1:9405", reached=True, oldest_call_s=21, allowance_s=5)
        one.guard = GuardStatus("m", End.HOST, 0.0, peers=(peer, late))
        await becomes(monitor, Health.STALLED)
