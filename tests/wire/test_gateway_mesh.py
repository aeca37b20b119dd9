"""Requests across nodes: forwarded once, streamed, and retried while nobody has answered."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from meshd.gateway.routes import ModelState, Peer, RoutingTable, Target
from meshd.gateway.table_file import write_table
from meshd.gateway.upstreams import Deadlines
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DONE,
    SSE_HEAD,
    Call,
    answering,
    chunk,
    engine,
    event,
    plain,
    streaming,
    until,
)
from tests.wire.mesh_harness import Node, caller, mute, name_of, node, table

STREAM = {"model": "m", "stream": True}


@asynccontextmanager
async def mesh(folder: Path, *names: str, **options: object) -> AsyncIterator[list[Node]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(node(folder, name, **options))  # type: ignore[arg-type]
            for name in names
        ]


def code(body: bytes) -> str:
    found = json.loads(body)["error"]
    assert set(found) >= {"message", "type", "param", "code"}
    return str(found["code"])


async def test_a_request_goes_to_the_node_that_has_the_model(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering("far")) as far, mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        status, body, heads = await a.post({"model": "m"})
        assert (status, body) == (200, b'{"said":"far"}')
        assert heads["X-Mesh-Node"] == b.id
        for _ in range(5):
            assert (await a.post({"model": "m"}))[0] == 200
        sent = far.calls[0].head.lower()
        assert "x-mesh-hop" not in sent, "an engine hears nothing of the mesh"
        assert "x-request-id" in sent
        assert a.id not in sent


async def test_a_stream_passes_through_two_gateways_as_it_is_made(tmp_path: Path) -> None:
    path, seen = tmp_path / "e.sock", asyncio.Queue[None]()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        for number in range(10):
            await call.send(chunk(event(str(number))))
            await asyncio.wait_for(seen.get(), 5)  # held back anywhere, this waits for ever
        await call.send(chunk(DONE) + CHUNKED_END)

    async with engine(path, script), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        async with a.running.http.post(a.running.base + CHAT, json=STREAM) as answer:
            assert answer.headers["X-Mesh-Node"] == b.id
            for number in range(10):
                got = b""
                while not got.endswith(event(str(number))):
                    got += await answer.content.readany()
                seen.put_nowait(None)
            assert await answer.read() == DONE


async def test_a_client_that_leaves_frees_the_far_engine(tmp_path: Path) -> None:
    path, began, ended = tmp_path / "e.sock", asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        began.set()
        await call.hung_up()
        ended.set()

    async with engine(path, script), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        asking = asyncio.create_task(a.post(STREAM))
        await asyncio.wait_for(began.wait(), 5)
        asking.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_a_forwarded_request_goes_no_further(tmp_path: Path) -> None:
    """Two tables that contradict each other: a node that is asked does not ask back."""
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as unused, mesh(tmp_path, "a", "b", "c") as (a, b, c):
        await c.tell(table([c.own(path)], [a, b, c]))
        await b.tell(table([a.seen(), c.seen()], [a, b, c]))
        await a.tell(table([b.seen()], [a, b, c]))
        status, body, heads = await a.post({"model": "m"})
        assert status == 503
        assert code(body) == "model_unreachable"
        assert int(heads["Retry-After"]) > 0
        assert not unused.calls
        # The one that knows better is asked as soon as the table names it.
        await a.tell(table([b.seen(), c.seen()], [a, b, c]))
        assert (await a.post({"model": "m"}))[0] == 200
        # And b is not held to be dead for having said no.
        assert await a.metric("meshd_gateway_suspect_targets") == 0


async def test_a_members_own_request_may_be_forwarded_once(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        async with caller(b.member) as http:
            url, name = f"https://{a.address}{CHAT}", name_of(a)
            async with http.post(url, json={"model": "m"}, server_hostname=name) as answer:
                assert answer.status == 200
            hop = {"X-Mesh-Hop": "1"}
            async with http.post(
                url, json={"model": "m"}, headers=hop, server_hostname=name
            ) as answer:
                assert answer.status == 503
                assert code(await answer.read()) == "model_moved"


async def test_the_mark_of_a_hop_means_nothing_at_the_clients_door(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        async with a.running.http.post(
            a.running.base + CHAT, json={"model": "m"}, headers={"X-Mesh-Hop": "1"}
        ) as answer:
            assert answer.status == 200


async def test_own_engines_first_while_they_have_room(tmp_path: Path) -> None:
    here, there, go = tmp_path / "h.sock", tmp_path / "t.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await go.wait()
        await call.send(plain("200 OK", b"{}"))

    async with (
        engine(here, script) as near,
        engine(there, script) as far,
        mesh(tmp_path, "a", "b") as (a, b),
    ):
        await b.tell(table([b.own(there, slots=2)], [a, b]))
        await a.tell(table([b.seen(slots=2), a.own(here, slots=2)], [a, b]))
        asking = [asyncio.create_task(a.post({"model": "m"})) for _ in range(4)]
        await until(lambda: len(near.calls) + len(far.calls) == 4)
        assert (len(near.calls), len(far.calls)) == (2, 2)
        go.set()
        assert {status for status, _, _ in await asyncio.gather(*asking)} == {200}


@pytest.mark.parametrize("full", [True, False])
async def test_a_node_that_does_not_answer_costs_a_second_once(tmp_path: Path, full: bool) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()),
        mute(full=full) as address,
        mesh(tmp_path, "a", "b") as (a, b),
    ):
        await b.tell(table([b.own(path)], [a, b]))
        dead = Target("d" * 16, "", True, 64, address=address)
        await a.tell(table([dead, b.seen(busy=2)], [a, b], peers=[Peer(dead.node, address)]))
        began = time.monotonic()
        assert (await a.post({"model": "m"}))[0] == 200
        first = time.monotonic() - began
        assert first < 4
        began = time.monotonic()
        for _ in range(5):
            assert (await a.post({"model": "m"}))[0] == 200
        assert time.monotonic() - began < first, "it is not asked again"
        # A table that says nothing new of it does not bring it back.
        await a.tell(table([dead, b.seen(busy=1)], [a, b], peers=[Peer(dead.node, address)]))
        assert await a.metric("meshd_gateway_suspect_targets") == 1


async def test_a_refused_connection_is_retried_and_the_node_comes_back(tmp_path: Path) -> None:
    path, other = tmp_path / "e.sock", tmp_path / "o.sock"
    async with (
        engine(path, answering("one")),
        engine(other, answering("two")),
        mesh(tmp_path, "a", "c") as (a, c),
    ):
        await c.tell(table([c.own(other)], [a, c]))
        async with node(tmp_path, "b") as b:
            await b.tell(table([b.own(path)], [a, b, c]))
            await a.tell(table([b.seen(slots=64), c.seen(busy=1)], [a, b, c]))
            assert (await a.post({"model": "m"}))[1] == b'{"said":"one"}'
            gone = b.address
        assert (await a.post({"model": "m"}))[1] == b'{"said":"two"}'
        assert await a.metric("meshd_gateway_suspect_targets") == 1
        assert gone


async def test_a_node_that_dies_before_the_first_byte_of_a_stream(tmp_path: Path) -> None:
    """Its engine had even sent a head: the client has got nothing yet and never hears of it."""
    first, second, began = tmp_path / "1.sock", tmp_path / "2.sock", asyncio.Event()

    async def hangs(call: Call) -> None:
        await call.send(SSE_HEAD)
        began.set()
        await call.hung_up()

    async with (
        engine(first, hangs),
        engine(second, streaming([event("x"), DONE])),
        mesh(tmp_path, "a", "c") as (a, c),
    ):
        await c.tell(table([c.own(second)], [a, c]))
        async with AsyncExitStack() as stack:
            b = await stack.enter_async_context(node(tmp_path, "b", drain_s=0))
            await b.tell(table([b.own(first)], [a, b, c]))
            await a.tell(table([b.seen(slots=64), c.seen(busy=1)], [a, b, c]))
            asking = asyncio.create_task(a.post(STREAM))
            await asyncio.wait_for(began.wait(), 5)
            await stack.aclose()
        status, body, heads = await asking
        assert (status, body) == (200, event("x") + DONE)
        assert heads["X-Mesh-Node"] == c.id


@pytest.mark.parametrize("suspect", [True, False])
async def test_a_table_that_gives_a_node_up_frees_those_who_wait_there(
    tmp_path: Path, suspect: bool
) -> None:
    """As of a node that is stopped with SIGSTOP: its kernel still acknowledges every packet."""
    first, second, began = tmp_path / "1.sock", tmp_path / "2.sock", asyncio.Event()

    async def hangs(call: Call) -> None:
        began.set()
        await call.hung_up()

    async with (
        engine(first, hangs),
        engine(second, answering()),
        mesh(tmp_path, "a", "b", "c") as (a, b, c),
    ):
        await b.tell(table([b.own(first)], [a, b, c]))
        await c.tell(table([c.own(second)], [a, b, c]))
        await a.tell(table([b.seen()], [a, b, c]))
        asking = asyncio.create_task(a.post({"model": "m"}))
        await asyncio.wait_for(began.wait(), 5)
        # Suspect with nobody else: it may yet answer.
        await a.tell(table([b.seen(suspect=True)], [a, b, c]))
        assert not asking.done()
        if suspect:
            await a.tell(table([b.seen(suspect=True), c.seen()], [a, b, c]))
        else:
            await a.tell(table([c.seen()], [a, c]))
        status, _, heads = await asyncio.wait_for(asking, 5)
        assert (status, heads["X-Mesh-Node"]) == (200, c.id)


async def test_a_node_that_unloads_may_end_what_it_does(tmp_path: Path) -> None:
    path, began, go = tmp_path / "e.sock", asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        began.set()
        await go.wait()
        await call.send(plain("200 OK", b"{}"))

    async with engine(path, script), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        asking = asyncio.create_task(a.post({"model": "m"}))
        await asyncio.wait_for(began.wait(), 5)
        await a.tell(table([], [a, b], state=ModelState.WAITING))
        go.set()
        assert (await asking)[0] == 200


async def test_a_request_waits_a_moment_for_a_node_that_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()),
        mesh(tmp_path, "a", "c", deadlines=Deadlines(news=8)) as (a, c),
    ):
        await c.tell(table([c.own(path)], [a, c]))
        async with node(tmp_path, "b") as b:
            gone = b.seen()
        peers = [Peer(gone.node, gone.address)]
        await a.tell(table([gone], [a, c], peers=peers))
        asking = asyncio.create_task(a.post({"model": "m"}))

        async def failed() -> bool:
            return await a.metric("meshd_gateway_suspect_targets") == 1

        await until(failed)
        assert not asking.done()
        await a.tell(table([], [a, c], state=ModelState.LOADING))
        assert not asking.done()
        await a.tell(table([c.seen()], [a, c]))
        assert (await asking)[0] == 200


async def test_when_nobody_takes_over_the_client_is_told_to_come_back(tmp_path: Path) -> None:
    async with mesh(tmp_path, "a", deadlines=Deadlines(news=0.3)) as (a,):
        async with node(tmp_path, "b") as b:
            gone = b.seen()
        await a.tell(table([gone], [a], peers=[Peer(gone.node, gone.address)]))
        status, body, heads = await a.post({"model": "m"})
        assert status == 503
        assert int(heads["Retry-After"]) > 0
        assert gone.node not in body.decode()
        assert gone.address not in body.decode()


async def test_engines_that_a_request_kills_are_counted_across_nodes(tmp_path: Path) -> None:
    async def dies(call: Call) -> None:
        call.reset()

    paths = [tmp_path / f"{number}.sock" for number in range(3)]
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine(path, dies, healthy=False)) for path in paths
        ]
        a, b, c, d = await stack.enter_async_context(mesh(tmp_path, "a", "b", "c", "d"))
        nodes = [a, b, c, d]
        for one, path in zip((b, c, d), paths, strict=True):
            await one.tell(table([one.own(path)], nodes))
        await a.tell(table([b.seen(), c.seen(), d.seen()], nodes))
        status, body, _ = await a.post({"model": "m"})
        assert (status, code(body)) == (502, "engine_lost")
        assert sum(len(one.calls) for one in engines) == 2


async def test_a_far_stream_that_breaks_off_ends_with_an_error_event(tmp_path: Path) -> None:
    path, got = tmp_path / "e.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        await got.wait()
        call.reset()

    async with engine(path, script), mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        await a.tell(table([b.seen()], [a, b]))
        async with a.running.http.post(a.running.base + CHAT, json=STREAM) as answer:
            assert await answer.content.readany() == event("one")
            got.set()
            rest = await answer.read()
        assert rest.startswith(b'data: {"error"')
        assert rest.endswith(b"\n\n")
        assert b"[DONE]" not in rest


async def test_a_laptop_forwards_as_a_client_so_that_the_node_counts_and_routes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), mesh(tmp_path, "a", "b", "c") as (a, b, c):
        await c.tell(table([c.own(path)], [b, c]))
        await b.tell(table([c.seen()], [b, c]))
        # The laptop's table is older: it still names b, which sends it on.
        await a.tell(table([b.seen()], [b, c], client=True))
        assert (await a.post({"model": "m"}))[0] == 200
        asked = f'meshd_gateway_requests_total{{code="200",endpoint="{CHAT}",model="m"}}'
        assert await b.metric(asked) == 1


async def test_what_a_laptop_cannot_place_a_member_decides_and_counts(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), mesh(tmp_path, "a", "b") as (a, b):
        # The laptop's table is older than b's.
        await a.tell(table([], [b], model="m", state=ModelState.LOADING, client=True))
        status, body, heads = await a.post({"model": "new"})
        assert (status, code(body)) == (404, "model_not_found")
        await b.tell(table([b.own(path)], [b], model="new"))
        assert (await a.post({"model": "new"}))[0] == 200
        await b.tell(table([], [b], model="m", state=ModelState.LOADING))
        status, body, heads = await a.post({"model": "m"})
        assert (status, code(body)) == (503, "model_loading")
        assert int(heads["Retry-After"]) > 0
        missed = f'meshd_gateway_requests_total{{code="503",endpoint="{CHAT}",model="m"}}'
        assert await b.metric(missed) == 1
        async with a.running.http.get(a.running.base + "/metrics") as answer:
            assert 'model="new"' not in await answer.text()


async def test_without_a_certificate_nothing_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as far, mesh(tmp_path, "a", "b") as (a, b):
        await b.tell(table([b.own(path)], [a, b]))
        routes = table([b.seen()])
        bare = RoutingTable(generation=99, node=a.id, routes=routes.routes, front=routes.front)
        await asyncio.to_thread(write_table, a.running.routes, bare)

        async def refused() -> bool:
            return (await a.post({"model": "m"}))[0] == 503

        await until(refused)
        assert not far.calls
