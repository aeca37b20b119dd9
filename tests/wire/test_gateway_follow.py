"""A laptop: it follows one node's table, goes elsewhere when that is gone, and keeps the last."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from meshd.gateway.follow_routes import FollowTimes, RouteFollower
from meshd.gateway.routes import RoutingTable
from meshd.gateway.routes_feed import FeedLimits
from tests.wire.gateway_harness import answering, engine, until
from tests.wire.mesh_harness import SECRET, Member, member, mute, node, table

QUICK = FollowTimes(connect=1.0, silence=1.5, first=0.05, last=0.2)


@asynccontextmanager
async def following(
    who: Member, *peers: str, times: FollowTimes = QUICK, last: RoutingTable | None = None
) -> AsyncIterator[tuple[RouteFollower, list[RoutingTable]]]:
    heard: list[RoutingTable] = []
    follower = RouteFollower(
        who.id, who.tls, peers, heard.append, last=last, times=times, chance=random.Random(1)
    )
    task = asyncio.create_task(follower.run())
    try:
        yield follower, heard
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_it_follows_goes_elsewhere_and_keeps_the_last_table(tmp_path: Path) -> None:
    laptop = member(tmp_path, "laptop")
    path = tmp_path / "e.sock"
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(node(tmp_path, "a"))
        inner = AsyncExitStack()
        await stack.enter_async_context(inner)
        b = await inner.enter_async_context(node(tmp_path, "b", drain_s=0.0))
        await b.tell(table([b.own(path)], [b, a]))
        await a.tell(table([b.seen()], [a, b]))
        # Only b is configured; a is learned from b's table.
        async with following(laptop, b.address) as (follower, heard):
            await until(lambda: follower.connected == b.address and bool(heard))
            first = heard[-1]
            assert (first.node, first.tls, first.client) == (laptop.id, str(laptop.tls), True)
            (target,) = first.routes[0].targets
            assert (target.socket, target.address) == ("", b.address)
            await b.tell(table([b.own(path)], [b, a], model="new"))
            await until(lambda: heard[-1].routes[0].model == "new")
            await inner.aclose()
            await until(lambda: follower.connected == a.address)
            await a.tell(table([a.own(path)], [a], model="newer"))
            await until(lambda: heard[-1].routes[0].model == "newer")
            await stack.aclose()
            await until(lambda: follower.connected == "")
            assert follower.table == heard[-1]
            assert follower.problem


async def test_a_node_that_falls_silent_is_left(tmp_path: Path) -> None:
    laptop = member(tmp_path, "laptop")
    async with (
        node(tmp_path, "a", feed=FeedLimits(comment=60)) as a,
        node(tmp_path, "b", feed=FeedLimits(comment=0.2)) as b,
        mute() as address,
    ):
        await a.tell(table([], [a]))
        await b.tell(table([], [b]))
        async with following(laptop, address, a.address, b.address) as (follower, heard):
            await until(lambda: follower.connected == a.address)
            # a says nothing for longer than a node may; b does.
            seen: set[str] = set()

            def moved() -> bool:
                seen.add(follower.connected)
                return {"", a.address} <= seen

            await until(moved)
            assert heard


async def test_who_is_of_another_mesh_is_not_followed(tmp_path: Path) -> None:
    laptop = member(tmp_path, "laptop")
    async with (
        node(tmp_path, "x", secret=SECRET[::-1]) as other,
        following(laptop, other.address) as (follower, heard),
    ):
        await other.tell(table([], [other]))
        await until(lambda: "mesh" in follower.problem)
        assert not heard
        assert follower.connected == ""


async def test_a_laptops_gateway_serves_by_that_table_even_when_its_node_is_gone(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.sock"
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine(path, answering("far")))
        b = await stack.enter_async_context(node(tmp_path, "b"))
        laptop = await stack.enter_async_context(node(tmp_path, "laptop"))
        inner = AsyncExitStack()
        await stack.enter_async_context(inner)
        a = await inner.enter_async_context(node(tmp_path, "a", drain_s=0.0))
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        async with following(laptop.member, a.address) as (follower, heard):
            await until(lambda: bool(heard))
            assert follower.connected == a.address
            await laptop.tell(heard[-1])
            assert (await laptop.post({"model": "m"}))[1] == b'{"said":"far"}'
            await inner.aclose()
            assert (await laptop.post({"model": "m"}))[1] == b'{"said":"far"}'
