"""Who is called when something is free: not only those who are like the first in the line."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import CHAT, Call, Running, answering, engine, gateway, plain, until
from tests.wire.keyed import Keys, bearer

_TOO_LONG = {
    "code": 400,
    "type": "exceed_context_size_error",
    "message": "the request exceeds the available context size",
    "n_prompt_tokens": 5000,
    "n_ctx": 1000,
}


def _target(path: Path, context: int = 0) -> Target:
    return Target("local", str(path), True, 1, context=context)


def _ask(node: Running, who: str, model: str = "m", key: str = "") -> asyncio.Task[int]:
    async def post() -> int:
        headers = bearer(key) if key else {}
        body = {"model": model, "who": who, "messages": []}
        async with node.http.post(node.base + CHAT, json=body, headers=headers) as answer:
            await answer.read()
            return answer.status

    return asyncio.create_task(post())


async def _waiting(node: Running, count: int, model: str = "m") -> None:
    async def so_many() -> bool:
        return await node.metric(f'meshd_num_requests_waiting{{model="{model}"}}') == count

    await until(so_many)


async def test_a_prompt_that_fits_one_engine_only_does_not_hold_up_the_others(
    tmp_path: Path,
) -> None:
    small, large = tmp_path / "small.sock", tmp_path / "large.sock"
    seen: list[str] = []
    small_ends, large_ends = asyncio.Event(), asyncio.Event()

    async def in_small(call: Call) -> None:
        who = json.loads(call.body)["who"]
        seen.append(who)
        if who == "long":
            error = json.dumps({"error": _TOO_LONG}).encode()
            await call.send(plain("400 Bad Request", error))
            return
        if who == "first":
            await small_ends.wait()
        await call.send(plain("200 OK", b"{}"))

    async def in_large(call: Call) -> None:
        seen.append(json.loads(call.body)["who"])
        await large_ends.wait()
        await call.send(plain("200 OK", b"{}"))

    targets = _target(small, 1000), _target(large, 8000)
    table = RoutingTable(
        generation=1, routes=(Route("m", ModelState.READY, targets),), front=Front(wait_s=60)
    )
    async with engine(small, in_small), engine(large, in_large), gateway(tmp_path, table) as node:
        first = [_ask(node, "first") for _ in range(4)]  # both engines, and one more each
        await until(lambda: len(seen) == 4)
        long = _ask(node, "long")
        await _waiting(node, 1)
        small_ends.set()
        await until(lambda: "long" in seen)
        # It waits for the large engine from now on, and the small one has nothing to do.
        await _waiting(node, 1)
        async with asyncio.timeout(10):
            assert await _ask(node, "short") == 200
        assert not long.done()
        large_ends.set()
        assert await asyncio.gather(long, *first) == [200] * 5


async def test_auto_is_helped_by_another_model_than_the_one_it_waits_for(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    ends = asyncio.Event()

    async def script(call: Call) -> None:
        await ends.wait()
        await call.send(plain("200 OK", b"{}"))

    def table(*more: Route, generation: int) -> RoutingTable:
        routes = (Route("m", ModelState.READY, (_target(path),)), *more)
        return RoutingTable(generation=generation, routes=routes, front=Front(wait_s=60))

    other = tmp_path / "other.sock"
    async with (
        engine(path, script) as busy,
        engine(other, answering()),
        gateway(tmp_path, table(generation=1)) as node,
    ):
        first = [_ask(node, "first") for _ in range(2)]
        await until(lambda: len(busy.calls) == 2)
        named = _ask(node, "named")
        await _waiting(node, 1)
        anyone = _ask(node, "anyone", "auto")
        await _waiting(node, 2)
        warm = Route("other", ModelState.READY, (_target(other),))
        await asyncio.to_thread(write_table, node.routes, table(warm, generation=2))
        async with asyncio.timeout(10):
            assert await anyone == 200
        assert not named.done()
        ends.set()
        assert await asyncio.gather(named, *first) == [200] * 3


async def test_requests_of_one_key_do_not_stand_for_those_of_another(tmp_path: Path) -> None:
    path, other = tmp_path / "e.sock", tmp_path / "other.sock"
    ends = asyncio.Event()

    async def script(call: Call) -> None:
        await ends.wait()
        await call.send(plain("200 OK", b"{}"))

    keys = Keys(tmp_path)
    bound, free = keys.add("bound", models=("m",)), keys.add("free")

    def table(*more: Route, generation: int) -> RoutingTable:
        routes = (Route("m", ModelState.READY, (_target(path),)), *more)
        return RoutingTable(generation=generation, routes=routes, front=Front(wait_s=60))

    async with (
        engine(path, script) as busy,
        engine(other, answering()),
        gateway(tmp_path, table(generation=1), keys=keys.where) as node,
    ):
        first = [_ask(node, "first", key=bound) for _ in range(2)]
        await until(lambda: len(busy.calls) == 2)
        held = _ask(node, "held", "auto", bound)
        await _waiting(node, 1)
        helped = _ask(node, "helped", "auto", free)
        await _waiting(node, 2)
        warm = Route("other", ModelState.READY, (_target(other),))
        await asyncio.to_thread(write_table, node.routes, table(warm, generation=2))
        async with asyncio.timeout(10):
            assert await helped == 200
        assert not held.done()
        ends.set()
        assert await asyncio.gather(held, *first) == [200] * 3
