"""Requests that wait for a model: what they hear, in which order they go, and how waits end."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from meshd.gateway import turns
from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import (
    CHAT,
    DONE,
    Call,
    Running,
    answering,
    engine,
    event,
    gateway,
    plain,
    streaming,
    table_of,
    until,
)
from tests.wire.keyed import Keys, bearer

PATIENT = Front(wait_s=60)


def loading(
    path: Path, front: Front = PATIENT, *, load_s: float = 0, for_s: float = 0
) -> RoutingTable:
    """:param load_s: how long it takes as a rule. :param for_s: how long ago it began."""
    since_s = time.monotonic() - for_s
    target = Target("local", str(path), False, 1, load_s=load_s, since_s=since_s)
    return RoutingTable(
        generation=1, routes=(Route("m", ModelState.LOADING, (target,)),), front=front
    )


async def tell(node: Running, table: RoutingTable, generation: int = 2) -> None:
    """Let the gateway obey a table, as the brain does."""
    await asyncio.to_thread(write_table, node.routes, replace(table, generation=generation))


async def waiting(node: Running, count: int) -> None:
    """Until so many wait."""

    async def so_many() -> bool:
        return await node.metric('meshd_num_requests_waiting{model="m"}') == count

    await until(so_many)


def ask(
    node: Running, said: str = "", key: str = "", **more: object
) -> asyncio.Task[tuple[int, bytes, dict[str, str]]]:
    async def post() -> tuple[int, bytes, dict[str, str]]:
        body = {"model": "m", "messages": [{"role": "user", "content": said}], **more}
        headers = bearer(key) if key else {}
        async with node.http.post(node.base + CHAT, json=body, headers=headers) as answer:
            return answer.status, await answer.read(), dict(answer.headers)

    return asyncio.create_task(post())


async def line(answer: aiohttp.ClientResponse, within_s: float = 15) -> bytes:
    """The next event or comment."""
    found = b""
    async with asyncio.timeout(within_s):
        while not found.endswith(b"\n\n"):
            piece = await answer.content.readline()
            assert piece, f"the stream ended with {found!r}"
            found += piece
    return found


def error_in(event_: bytes) -> dict[str, object]:
    error = json.loads(event_.removeprefix(b"data: "))["error"]
    assert isinstance(error, dict)
    return error


async def test_a_stream_is_told_that_it_waits_until_the_model_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    body = {"model": "m", "stream": True}
    async with (
        engine(path, streaming([event("hello"), DONE])) as scripted,
        gateway(tmp_path, loading(path, load_s=50, for_s=10)) as node,
        node.http.post(node.base + CHAT, json=body) as answer,
    ):
        # The first word comes after 2 s, the others every 5 s.
        assert answer.status == 200
        assert answer.headers["X-Accel-Buffering"] == "no"
        assert (await line(answer)).startswith(b": waiting for m: loading, about ")
        assert (await line(answer)).startswith(b": waiting for m: loading, about ")
        assert not scripted.calls
        await tell(node, table_of(path, front=PATIENT))
        async with asyncio.timeout(10):
            assert await answer.read() == event("hello") + DONE
        assert len(scripted.calls) == 1


async def test_a_plain_request_waits_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), gateway(tmp_path, loading(path)) as node:
        asked = ask(node)
        await waiting(node, 1)
        await tell(node, table_of(path, front=PATIENT))
        status, body, _ = await asyncio.wait_for(asked, 10)
        assert (status, json.loads(body)) == (200, {"said": "pong"})
        await waiting(node, 0)


@pytest.mark.parametrize(
    ("load_s", "for_s", "retry_s"),
    [
        (300, 100, range(199, 202)),  # known to be longer than the wait: said at once
        (1, 11, range(2, 6)),  # longer than usual: a guess, once the wait is over
        (0, 0, range(5, 6)),  # nothing was measured
    ],
)
async def test_who_waited_too_long_is_told_when_to_come_back(
    tmp_path: Path, load_s: float, for_s: float, retry_s: range
) -> None:
    table = loading(tmp_path / "e.sock", Front(wait_s=0.5), load_s=load_s, for_s=for_s)
    async with gateway(tmp_path, table) as node:
        status, body, heads = await asyncio.wait_for(ask(node), 10)
        error = json.loads(body)["error"]
        assert (status, error["code"], error["type"]) == (503, "model_loading", "server_error")
        assert int(heads["Retry-After"]) in retry_s
        if load_s:
            assert error["eta_s"] == int(heads["Retry-After"])
            assert f"in about {error['eta_s']} s" in error["message"]
        else:
            assert "eta_s" not in error


async def test_a_stream_that_was_told_to_wait_ends_with_an_error_event(tmp_path: Path) -> None:
    table = loading(tmp_path / "e.sock", Front(wait_s=2.5), load_s=1, for_s=11)
    async with (
        gateway(tmp_path, table) as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        assert (await line(answer)).startswith(b": waiting for m: loading, longer than usual")
        error = error_in(await line(answer))
        assert error["code"] == "model_loading"
        assert error["eta_s"] == error["retry_after_s"]
        assert error["eta_s"] in range(2, 6)
        assert await answer.read() == b""


async def test_a_clients_own_deadline_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with gateway(tmp_path, loading(path, Front(wait_s=3600))) as node:
        for name in ("X-Request-Timeout", "X-Stainless-Timeout"):
            async with asyncio.timeout(20):
                async with node.http.post(
                    node.base + CHAT, json={"model": "m"}, headers={name: "0.4"}
                ) as answer:
                    assert answer.status == 503
                    assert int(answer.headers["Retry-After"]) > 0


async def test_a_client_that_leaves_frees_its_place(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    front = Front(wait_s=60, queue=1)
    async with (
        engine(path, answering()) as scripted,
        gateway(tmp_path, loading(path, front)) as node,
    ):
        for stream in (False, True):
            left = ask(node, "gone", stream=stream)
            await waiting(node, 1)
            assert (await ask(node))[0] == 503
            left.cancel()
            await waiting(node, 0)
        stays = ask(node, "stays")
        await waiting(node, 1)
        await tell(node, table_of(path, front=front))
        assert (await asyncio.wait_for(stays, 10))[0] == 200
        assert [b"stays" in call.body for call in scripted.calls] == [True]


async def test_a_full_room_says_whose_fault_it_is(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    greedy, other, third = (keys.add(name) for name in ("greedy", "other", "third"))
    path = tmp_path / "e.sock"
    table = loading(path, Front(wait_s=60, queue=4), load_s=40, for_s=10)
    async with gateway(tmp_path, table, keys=keys.where) as node:
        held = [ask(node, key=greedy) for _ in range(3)]
        await waiting(node, 3)
        status, body, heads = await asyncio.wait_for(ask(node, key=greedy), 10)
        error = json.loads(body)["error"]
        assert (status, error["code"]) == (429, "rate_limit_exceeded")
        assert "this API key" in error["message"]
        assert 25 <= int(heads["Retry-After"]) <= 31  # when it will have loaded
        held.append(ask(node, key=other))
        await waiting(node, 4)
        for key in (third, ""):
            status, body, heads = await asyncio.wait_for(ask(node, key=key), 10)
            assert (status, json.loads(body)["error"]["code"]) == (503, "model_overloaded")
            assert 25 <= int(heads["Retry-After"]) <= 31
        for one in held:
            one.cancel()
        await waiting(node, 0)


@asynccontextmanager
async def one_by_one(path: Path) -> AsyncIterator[tuple[list[str], asyncio.Semaphore]]:
    """An engine that answers when it is let. :returns: what was said in each request, in order."""
    order: list[str] = []
    let = asyncio.Semaphore(0)

    async def script(call: Call) -> None:
        order.append(json.loads(call.body)["messages"][0]["content"])
        await let.acquire()
        await call.send(plain("200 OK", b"{}"))

    async with engine(path, script, backlog=64):
        yield order, let


async def served(order: list[str], let: asyncio.Semaphore, count: int) -> list[str]:
    """The first so many, each let go as it comes."""
    for number in range(count):
        await until(lambda number=number: len(order) > number)
        let.release()
    return order[:count]


async def test_keys_take_turns_though_one_floods(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    flood, quiet = keys.add("flood"), keys.add("quiet")
    path = tmp_path / "e.sock"
    async with (
        one_by_one(path) as (order, let),
        gateway(tmp_path, loading(path), keys=keys.where) as node,
    ):
        asked = [ask(node, "flood", flood) for _ in range(12)]
        await waiting(node, 12)
        asked += [ask(node, "quiet", quiet) for _ in range(3)]
        await waiting(node, 15)
        await tell(node, table_of(path, slots=1, front=PATIENT))
        assert await served(order, let, 6) == ["flood", "quiet"] * 3
        for _ in range(9):
            let.release()
        async with asyncio.timeout(20):
            assert [(await one)[0] for one in asked] == [200] * 15
        assert order[6:] == ["flood"] * 9


async def test_who_has_the_higher_priority_goes_first(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    low, usual, high = keys.add("low", priority=-3), keys.add("usual"), keys.add("high", priority=3)
    path = tmp_path / "e.sock"
    async with (
        one_by_one(path) as (order, let),
        gateway(tmp_path, loading(path), keys=keys.where) as node,
    ):
        asked = []
        for said, key in (("low", low), ("usual", usual), ("high", high)):
            asked += [ask(node, said, key) for _ in range(2)]
            await waiting(node, len(asked))
        await tell(node, table_of(path, slots=1, front=PATIENT))
        await served(order, let, 6)
        assert order == ["high", "high", "usual", "usual", "low", "low"]
        async with asyncio.timeout(20):
            assert [(await one)[0] for one in asked] == [200] * 6


async def test_a_gateway_that_stops_tells_those_who_wait(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with aiohttp.ClientSession() as http:
        async with gateway(tmp_path, loading(path), drain_s=0.2) as node:
            mine = replace(node, http=http)
            asked = ask(mine)
            await waiting(node, 1)
            told = await http.post(node.base + CHAT, json={"model": "m", "stream": True})
            assert (await line(told)).startswith(b": waiting for m")
        status, body, heads = await asyncio.wait_for(asked, 10)
        assert (status, json.loads(body)["error"]["code"]) == (503, "stopping")
        assert int(heads["Retry-After"]) > 0
        error = error_in(await line(told))
        assert error["code"] == "stopping"
        assert error["retry_after_s"] == int(heads["Retry-After"])
        assert await told.read() == b""
        told.close()


async def test_engines_that_all_fell_silent_are_not_waited_for_as_long_as_a_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "RESUME_WAIT_S", 0.5)
    async with gateway(tmp_path, table_of(tmp_path / "gone.sock", front=PATIENT)) as node:
        async with asyncio.timeout(10):
            status, body, headers = await ask(node)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "model_unreachable"
        assert int(headers["Retry-After"]) >= 1


async def test_a_load_that_begins_meanwhile_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, patience_s = tmp_path / "e.sock", 1.0
    monkeypatch.setattr(turns, "RESUME_WAIT_S", patience_s)
    async with gateway(tmp_path, table_of(path, front=PATIENT)) as node:
        began_s = time.monotonic()
        asking = ask(node)
        await waiting(node, 1)
        await tell(node, loading(path))
        await until(lambda: time.monotonic() - began_s > 1.5 * patience_s)
        assert not asking.done()
        async with engine(path, answering("there")):
            await tell(node, table_of(path, front=PATIENT), 3)
            async with asyncio.timeout(10):
                assert (await asking)[:2] == (200, b'{"said":"there"}')
