"""Whom the gateway passes over, and what makes it ask again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import ModelState, Route, RoutingTable, Target
from meshd.gateway.suspicion import Suspicion

HERE = Target("me", "/run/e.sock", True, 1)
FAR = Target("far", "", True, 1, address="10.0.0.2:9338")


def table(*targets: Target) -> RoutingTable:
    return RoutingTable(routes=(Route("m", ModelState.READY, targets),))


class World:
    """:ivar well: keys that answer probes. :ivar told: how often somebody answered again."""

    def __init__(self) -> None:
        self.well: set[str] = set()
        self.told = 0
        self.probed = asyncio.Event()

    async def probe(self, target: Target) -> bool:
        self.probed.set()
        return target.key in self.well

    def clear(self) -> None:
        self.told += 1


@asynccontextmanager
async def suspicion() -> AsyncIterator[tuple[Suspicion, World]]:
    world = World()
    made = Suspicion(world.probe, GatewayMetrics(process=False), world.clear)
    made.table_changed(table(HERE, FAR))
    try:
        yield made, world
    finally:
        await made.close()


async def test_a_far_suspect_stays_one_when_a_table_changes_for_other_reasons() -> None:
    async with suspicion() as (made, _):
        made.suspect(HERE)
        made.suspect(FAR)
        assert made.nodes == {"far"}
        made.table_changed(table(HERE, replace(FAR, busy=3, rtt_ms=7.0)))
        assert made.keys == {FAR.key}, "the brain knows better only about its own engines"


async def test_a_table_that_calls_it_fine_anew_or_drops_it_ends_the_suspicion() -> None:
    for between in (replace(FAR, suspect=True), replace(FAR, ready=False)):
        async with suspicion() as (made, _):
            made.suspect(FAR)
            made.table_changed(table(between))
            assert made.keys == {FAR.key}
            made.table_changed(table(FAR))
            assert not made.keys
    async with suspicion() as (made, _):
        made.suspect(FAR)
        made.table_changed(table(HERE))
        assert not made.keys
        assert not made.nodes


async def test_an_answered_probe_ends_it_and_is_told() -> None:
    async with suspicion() as (made, world):
        made.suspect(FAR)
        made.suspect(FAR)
        await asyncio.wait_for(world.probed.wait(), 5)
        assert (made.keys, world.told) == ({FAR.key}, 0)
        world.well.add(FAR.key)
        async with asyncio.timeout(5):
            while made.keys:
                await asyncio.sleep(0.01)
        assert world.told == 1


async def test_a_node_that_lacks_a_model_is_well_and_soon_asked_again() -> None:
    async with suspicion() as (made, world):
        made.lacks("m@far")
        assert made.keys == {"m@far"}
        assert not made.nodes
        async with asyncio.timeout(5):
            while made.keys:
                await asyncio.sleep(0.01)
        made.lacks("m@far")
        made.table_changed(table(HERE, FAR))
        assert not made.keys
        assert not world.probed.is_set()
