"""What the gateway follows goes on after a failure that nobody thought of."""

from __future__ import annotations

import asyncio

import pytest

from meshd.gateway import lasting as module
from meshd.gateway.lasting import lasting
from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import Front, RoutingTable
from meshd.gateway.telemetry import OFF, Telemetry


async def test_work_that_fails_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PAUSE_S", 0.001)
    begun = 0

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise RuntimeError("nobody thought of that")

    async with asyncio.timeout(20):
        await lasting("work", work)
    assert begun == 3


async def test_work_that_is_cancelled_does_not() -> None:
    begun = asyncio.Event()

    async def work() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(lasting("work", work))
    async with asyncio.timeout(20):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("url", ["http://[", "http://[::1", "http://[x]"])
async def test_a_table_with_a_broken_url_for_traces_is_obeyed_all_the_same(url: str) -> None:
    telemetry = Telemetry(GatewayMetrics(process=False))
    telemetry.table_changed(RoutingTable(front=Front(otlp=url)))
    assert telemetry.request({}, "/v1/x", "req-1") is OFF
    await telemetry.close()
