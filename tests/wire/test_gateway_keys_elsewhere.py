"""Keys take turns and have their priorities at whichever node their requests wait."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from meshd.gateway.routes import Front
from tests.wire.gateway_harness import CHAT, Call, engine, plain, until
from tests.wire.keyed import Keys, bearer
from tests.wire.mesh_harness import Node, node, table


async def test_keys_of_one_node_take_turns_at_another(tmp_path: Path) -> None:
    path, order, let = tmp_path / "e.sock", list[str](), asyncio.Semaphore(0)
    keys = Keys(tmp_path)
    sent = {"flood": keys.add("flood"), "quiet": keys.add("quiet")}
    sent["first"] = keys.add("first", priority=5)

    async def script(call: Call) -> None:
        assert "sk-mesh-" not in call.head
        order.append(json.loads(call.body)["messages"][0]["content"])
        await let.acquire()
        await call.send(plain("200 OK", b"{}"))

    def ask(to: Node, said: str) -> asyncio.Task[int]:
        async def post() -> int:
            body = {"model": "m", "messages": [{"role": "user", "content": said}]}
            async with to.running.http.post(
                to.running.base + CHAT, json=body, headers=bearer(sent[said])
            ) as answer:
                await answer.read()
                return answer.status

        return asyncio.create_task(post())

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(engine(path, script, backlog=64))
        a = await stack.enter_async_context(node(tmp_path, "a", keys=keys.where))
        b = await stack.enter_async_context(node(tmp_path, "b"))
        front = Front(wait_s=60)
        await b.tell(replace(table([b.own(path, slots=1)], [a, b]), front=front))
        await a.tell(replace(table([b.seen(slots=1)], [a, b]), front=front))
        # One more than there are slots goes to the engine at once.
        asked = [ask(a, "flood") for _ in range(2)]
        await until(lambda: len(order) == 2)
        for said in ("flood", "flood", "flood", "flood", "quiet", "first"):
            asked.append(ask(a, said))

            async def waits() -> bool:
                line = 'meshd_num_requests_waiting{model="m"}'
                return await b.metric(line) == len(asked) - 2

            await until(waits)
        for number in range(len(asked)):
            await until(lambda number=number: len(order) > number)
            let.release()
        async with asyncio.timeout(20):
            assert [await one for one in asked] == [200] * 8
        assert order[2:] == ["first", "flood", "quiet", "flood", "flood", "flood"]
