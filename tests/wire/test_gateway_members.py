"""Members of the mesh as each other's clients: none crowds out another, none opens what a key does
not.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.gateway.routes import Front
from tests.wire.gateway_harness import CHAT, Call, Running, answering, engine, plain, until
from tests.wire.keyed import Keys, bearer
from tests.wire.mesh_harness import node, table


def _ask(running: Running, who: str, model: str = "m", key: str = "") -> asyncio.Task[int]:
    async def post() -> int:
        headers = bearer(key) if key else {}
        body = {"model": model, "who": who}
        async with running.http.post(running.base + CHAT, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    return asyncio.create_task(post())


@pytest.mark.parametrize("laptop", [False, True])
async def test_a_node_that_sends_many_does_not_hold_up_another(
    tmp_path: Path, laptop: bool
) -> None:
    path = tmp_path / "e.sock"
    seen: list[str] = []
    turns: asyncio.Queue[None] = asyncio.Queue()

    async def script(call: Call) -> None:
        seen.append(json.loads(call.body)["who"])
        await turns.get()
        await call.send(plain("200 OK", b"{}"))

    patient = Front(wait_s=60)
    async with (
        engine(path, script),
        node(tmp_path, "a") as a,
        node(tmp_path, "b") as b,
        node(tmp_path, "c") as c,
    ):
        nodes = [a, b, c]
        await c.tell(replace(table([c.own(path, slots=1)], nodes), front=patient))
        for one in (a, b):
            far = table([c.seen()], nodes, client=laptop)
            await one.tell(replace(far, front=patient))

        async def waiting(count: int) -> None:
            async def so_many() -> bool:
                return await c.metric('meshd_num_requests_waiting{model="m"}') == count

            await until(so_many)

        asked = [_ask(a.running, "many") for _ in range(2)]
        await until(lambda: len(seen) == 2)
        for number in range(4):
            asked.append(_ask(a.running, "many"))
            await waiting(number + 1)
        asked.append(_ask(b.running, "one"))
        await waiting(5)
        for _ in asked:
            turns.put_nowait(None)
        async with asyncio.timeout(20):
            assert await asyncio.gather(*asked) == [200] * 7
        assert seen.index("one") in (2, 3), "next, or the one after it"


async def test_a_laptop_asks_no_member_for_what_its_client_s_key_does_not_open(
    tmp_path: Path,
) -> None:
    path, keys = tmp_path / "e.sock", Keys(tmp_path)
    bound, free = keys.add("bound", models=("tiny",)), keys.add("free")
    async with (
        engine(path, answering()) as far,
        node(tmp_path, "a", keys=keys.where) as a,
        node(tmp_path, "b") as b,
    ):
        await b.tell(table([b.own(path)], [b], model="secret"))
        await a.tell(table([b.seen()], [b], model="secret", client=True))
        # The last two are names for it that only the member would know.
        for model, status in (("secret", 403), ("sec", 404), ("auto", 404)):
            assert await _ask(a.running, "bound", model, bound) == status
        assert not far.calls
        assert await _ask(a.running, "free", "sec", free) == 200
