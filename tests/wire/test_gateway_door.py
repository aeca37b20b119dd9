"""The peer door: members only, revoked ones cut, certificates and tables followed."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest

from meshd.gateway.routes import RoutingTable, decode
from meshd.gateway.routes_feed import FeedLimits
from meshd.mesh.credentials import from_secret, write_tls
from meshd.mesh.identity import identity
from meshd.mesh.tls import client_context
from tests.wire.gateway_harness import (
    CHAT,
    SSE_HEAD,
    Call,
    answering,
    chunk,
    engine,
    event,
    until,
)
from tests.wire.mesh_harness import SECRET, Node, caller, member, name_of, node, table

HEALTH = "/mesh/health"
ROUTES = "/mesh/routes"
SSE = {"Accept": "text/event-stream"}


async def status(http: aiohttp.ClientSession, to: Node, path: str = HEALTH) -> int:
    """Of a GET at its peer door; 0 when nothing comes of it."""
    try:
        async with http.get(f"https://{to.address}{path}", server_hostname=name_of(to)) as answer:
            await answer.read()
            return answer.status
    except (aiohttp.ClientError, OSError):
        return 0


async def next_event(answer: aiohttp.ClientResponse) -> dict[str, bytes]:
    held = b""
    async with asyncio.timeout(10):
        while not held.endswith(b"\n\n"):
            piece = await answer.content.readline()
            assert piece, "the stream ended"
            held += piece
    lines = [line.partition(b": ") for line in held.strip().split(b"\n")]
    return {name.decode(): value for name, _, value in lines}


async def test_members_are_let_in_and_strangers_learn_nothing(tmp_path: Path) -> None:
    async with node(tmp_path, "a") as a:
        friend = member(tmp_path, "b")
        other_mesh = member(tmp_path, "x", SECRET[::-1])
        async with caller(friend) as http:
            await until(lambda: _is_up(http, a))
        mixed = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        mixed.load_verify_locations(friend.tls / "ca.pem")
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nobody.load_verify_locations(friend.tls / "ca.pem")
        mixed.load_cert_chain(other_mesh.tls / "cert.pem", other_mesh.tls / "key.pem")
        for context in (mixed, nobody):
            async with caller(friend, context=context) as http:
                for path in (HEALTH, ROUTES, "/v1/models", "/"):
                    assert await status(http, a, path) == 0
        host, port = a.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            heard = await asyncio.wait_for(reader.read(), 10)
            assert b"HTTP" not in heard
            assert a.id.encode() not in heard
        writer.close()


async def _is_up(http: aiohttp.ClientSession, to: Node) -> bool:
    # asyncio's server forgets a connection that it accepts while it is closed.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            return await status(http, to) == 200
    return False


async def test_a_revoked_node_is_cut_and_stays_out(tmp_path: Path) -> None:
    path, began, ended = tmp_path / "e.sock", asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        began.set()
        await call.hung_up()
        ended.set()

    async with engine(path, script), node(tmp_path, "a") as a:
        bad, good = member(tmp_path, "bad"), member(tmp_path, "good")
        await a.tell(table([a.own(path)], [a]))
        async with caller(bad) as http, caller(good) as other:
            await until(lambda: _is_up(http, a))
            url = f"https://{a.address}"
            async with (
                http.get(url + ROUTES, headers=SSE, server_hostname=name_of(a)) as feed,
                http.post(url + CHAT, json={"model": "m"}, server_hostname=name_of(a)) as running,
                other.get(url + ROUTES, headers=SSE, server_hostname=name_of(a)) as kept,
            ):
                await next_event(feed)
                await next_event(kept)
                await asyncio.wait_for(began.wait(), 5)
                await a.tell(table([a.own(path)], [a], revoked=(bad.id,)))
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await asyncio.wait_for(running.read(), 5)
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await asyncio.wait_for(feed.read(), 5)
                await asyncio.wait_for(ended.wait(), 5)
                assert bad.id in decode((await next_event(kept))["data"]).revoked
            for path_ in (HEALTH, ROUTES, "/v1/models"):
                assert await status(http, a, path_) == 0
            assert await status(other, a) == 200


async def test_the_door_follows_the_certificate_and_closes_without_a_mesh(tmp_path: Path) -> None:
    async with node(tmp_path, "a") as a:
        friend = member(tmp_path, "b")
        async with caller(friend) as http:
            await until(lambda: _is_up(http, a))
        # Another secret: the mesh is another one, and so is who is let in.
        secret = SECRET[::-1]
        new = from_secret(identity(a.member.folder, {}), secret, "lab")
        write_tls(new, a.member.tls, datetime.now(UTC))
        newcomer = member(tmp_path, "n", secret)
        renamed = Node(
            type(a.member)(a.id, newcomer.mesh, a.member.folder), a.address, a.running, 50
        )
        await renamed.tell(table([], [a]))
        async with caller(newcomer) as http, caller(friend) as old:
            await until(lambda: _is_up(http, renamed))
            assert await status(old, a) == 0
            await asyncio.to_thread(
                _write, renamed.running.routes, RoutingTable(generation=99, node=a.id)
            )

            async def closed() -> bool:
                # A connection may still be made: the socket is not ours to close.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        return await status(http, renamed) == 0
                return True

            await until(closed)
        status_, _, _ = await a.post({"model": "m"})
        assert status_ == 404, "clients are served as before"


def _write(path: Path, routes: RoutingTable) -> None:
    from meshd.gateway.table_file import write_table

    write_table(path, routes)


async def test_a_damaged_certificate_leaves_the_good_one_in_use(tmp_path: Path) -> None:
    async with node(tmp_path, "a") as a:
        friend = member(tmp_path, "b")
        async with caller(friend) as http:
            await until(lambda: _is_up(http, a))
            (a.member.tls / "cert.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n")
            await a.tell(table([], [a]))
        for _ in range(3):
            async with caller(friend) as http:
                assert await status(http, a) == 200


async def test_the_table_is_told_from_outside_and_only_when_it_changed(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), node(tmp_path, "a") as a:
        friend = member(tmp_path, "b")
        first = table([a.own(path)], [a])
        await a.tell(first)
        async with caller(friend) as http:
            await until(lambda: _is_up(http, a))
            url, name = f"https://{a.address}{ROUTES}", name_of(a)
            async with http.get(url, headers=SSE, server_hostname=name) as feed:
                told = await next_event(feed)
                seen = decode(told["data"])
                (target,) = seen.routes[0].targets
                assert (target.socket, target.address) == ("", a.address)
                assert seen.tls == ""
                assert str(tmp_path).encode() not in told["data"]
                await a.tell(first)  # only its generation is another
                await a.tell(table([], [a]))
                after = await next_event(feed)
                assert decode(after["data"]).routes[0].targets == ()
            again = {**SSE, "Last-Event-ID": after["id"].decode()}
            async with http.get(url, headers=again, server_hostname=name) as feed:
                assert "data" not in await next_event(feed), "it has that one already"
            async with http.get(url, server_hostname=name) as once:
                assert decode(await once.read()).routes[0].model == "m"
                tag = once.headers["ETag"]
            async with http.get(url, headers={"If-None-Match": tag}, server_hostname=name) as once:
                assert once.status == 304


async def test_silence_is_broken_and_followers_are_bounded(tmp_path: Path) -> None:
    limits = FeedLimits(followers=3, followers_per_member=2, comment=0.1)
    async with node(tmp_path, "a", feed=limits) as a:
        one, two = member(tmp_path, "b"), member(tmp_path, "c")
        await a.tell(table([], [a]))
        async with caller(one) as http, caller(two) as other:
            await until(lambda: _is_up(http, a))

            async def follow(by: aiohttp.ClientSession) -> aiohttp.ClientResponse:
                return await by.get(
                    f"https://{a.address}{ROUTES}", headers=SSE, server_hostname=name_of(a)
                )

            feeds = [await follow(http), await follow(http)]
            assert [feed.status for feed in feeds] == [200, 200]
            assert (await follow(http)).status == 503, "a member's share"
            feeds.append(await follow(other))
            assert feeds[-1].status == 200
            assert (await follow(other)).status == 503, "all there is"
            await next_event(feeds[0])
            assert "data" not in await next_event(feeds[0])
            feeds[0].close()

            async def room() -> bool:
                feed = await follow(other)
                feeds.append(feed)
                return feed.status == 200

            await until(room)
            for feed in feeds:
                feed.close()


async def test_a_follower_that_does_not_read_is_cut(tmp_path: Path) -> None:
    limits = FeedLimits(slow=0.3, pause=0)
    async with node(tmp_path, "a", feed=limits) as a:
        friend = member(tmp_path, "b")
        await a.tell(table([], [a]))
        host, port = a.address.split(":")
        reader, writer = await asyncio.open_connection(
            host, int(port), ssl=client_context(friend.tls), server_hostname=name_of(a), limit=1024
        )
        writer.write(b"GET /mesh/routes HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\n\r\n")
        assert b"200" in await reader.readline()
        cut = False
        with contextlib.suppress(ConnectionError):
            for number in range(200):
                await a.tell(table([], [a], model=f"{number}" + "m" * 200_000))
                if writer.transport.is_closing():
                    break

            async def ended() -> bool:
                return (
                    await a.metric(
                        f'meshd_gateway_requests_total{{code="200",endpoint="{ROUTES}",model="none"}}'
                    )
                    == 1
                )

            await until(ended)
            cut = True
        assert cut
        writer.transport.abort()
