"""Requests that another gateway sent on wait in the line as if they had come here first."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp

from meshd.gateway.onward import Onward
from meshd.gateway.routes import Front, RoutingTable
from tests.wire.gateway_harness import CHAT, Call, engine, plain, until
from tests.wire.mesh_harness import Node, caller, name_of, node, table


def _patient(told: RoutingTable) -> RoutingTable:
    return replace(told, front=Front(wait_s=60))


def _hop(
    http: aiohttp.ClientSession, to: Node, said: str, onward: Onward
) -> asyncio.Task[tuple[int, bytes]]:
    async def post() -> tuple[int, bytes]:
        body = {"model": "m", "messages": [{"role": "user", "content": said}]}
        async with http.post(
            f"https://{to.address}{CHAT}",
            json=body,
            headers={"X-Mesh-Hop": "1", **onward.headers()},
            server_hostname=name_of(to),
        ) as answer:
            return answer.status, await answer.read()

    return asyncio.create_task(post())


async def _waiting(to: Node, count: int) -> None:
    async def so_many() -> bool:
        return await to.metric('meshd_num_requests_waiting{model="m"}') == count

    await until(so_many)


async def test_a_stream_that_broke_elsewhere_goes_first_and_waits_elsewhere_count(
    tmp_path: Path,
) -> None:
    path, order, let = tmp_path / "e.sock", list[str](), asyncio.Semaphore(0)

    async def script(call: Call) -> None:
        order.append(json.loads(call.body)["messages"][0]["content"])
        await let.acquire()
        await call.send(plain("200 OK", b"{}"))

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine(path, script, backlog=64))
        a = await stack.enter_async_context(node(tmp_path, "a"))
        b = await stack.enter_async_context(node(tmp_path, "b"))
        http = await stack.enter_async_context(caller(a.member))
        await b.tell(_patient(table([b.own(path, slots=1)], [a, b])))
        # One more than there are slots goes to the engine at once.
        asked = [_hop(http, b, "served", Onward(patience_s=60)) for _ in range(2)]
        await until(lambda: len(order) == 2)
        for count, (said, onward) in enumerate(
            {
                "new": Onward(patience_s=60),
                "old": Onward(30, 60),
                "broken": Onward(30, 60, begun=True),
            }.items(),
            1,
        ):
            asked.append(_hop(http, b, said, onward))
            await _waiting(b, count)
        for number in range(len(asked)):
            await until(lambda number=number: len(order) > number)
            let.release()
        assert [(await one)[0] for one in asked] == [200] * 5
        assert order == ["served", "served", "broken", "old", "new"]


async def test_patience_that_is_used_up_brings_a_request_back_at_once(tmp_path: Path) -> None:
    path, began = tmp_path / "e.sock", list[Call]()

    async def script(call: Call) -> None:
        began.append(call)
        await call.hung_up()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine(path, script, backlog=64))
        a = await stack.enter_async_context(node(tmp_path, "a"))
        b = await stack.enter_async_context(node(tmp_path, "b"))
        http = await stack.enter_async_context(caller(a.member))
        await b.tell(_patient(table([b.own(path, slots=1)], [a, b])))
        held = [_hop(http, b, "held", Onward(patience_s=60)) for _ in range(2)]
        await until(lambda: len(began) == 2)
        status, body = await asyncio.wait_for(_hop(http, b, "late", Onward(99, 0)), 5)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "model_moved"
        for one in held:
            one.cancel()
