"""A request that kills engines goes through two of them, whichever way it reaches them."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from meshd.gateway.routes import Front
from tests.wire.gateway_harness import (
    CHAT,
    SSE_HEAD,
    Call,
    Script,
    chunk,
    engine,
    event,
    gateway,
    plain,
    table_of,
)
from tests.wire.mesh_harness import node, table


async def test_engines_on_kept_connections_are_counted_too(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sock" for number in range(4)]
    together = asyncio.Barrier(4)
    dead: list[Path] = []

    def script(path: Path) -> Script:
        async def run(call: Call) -> None:
            if b"poison" in call.body:
                dead.append(path)
                await asyncio.to_thread(path.unlink)  # nobody is in its place
                call.reset()
                return
            await together.wait()
            await call.send(plain("200 OK", b"{}"))

        return run

    async with AsyncExitStack() as stack:
        for path in paths:
            await stack.enter_async_context(engine(path, script(path), healthy=False))
        here = await stack.enter_async_context(gateway(tmp_path, table_of(*paths, slots=1)))
        async with asyncio.timeout(20):
            warm = await asyncio.gather(*(here.post({"model": "m"}) for _ in paths))
        assert [status for status, _, _ in warm] == [200] * 4
        status, body, _ = await here.post({"model": "m", "prompt": "poison"})
        assert (status, json.loads(body)["error"]["code"]) == (502, "engine_lost")
        assert len(dead) == 2


async def test_engines_of_other_nodes_that_die_in_the_middle_are_counted_too(
    tmp_path: Path,
) -> None:
    async def dies(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        call.reset()

    paths = [tmp_path / f"{number}.sock" for number in range(4)]
    async with AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(engine(path, dies, healthy=False)) for path in paths
        ]
        nodes = [await stack.enter_async_context(node(tmp_path, name)) for name in "abcde"]
        asked, *others = nodes
        for one, path in zip(others, paths, strict=True):
            await one.tell(table([one.own(path)], nodes))
        routes = table([replace(one.seen(), weights="w") for one in others], nodes)
        await asked.tell(replace(routes, front=Front(wait_s=30)))
        body = {"model": "m", "stream": True, "temperature": 0, "messages": []}
        async with asked.running.http.post(asked.running.base + CHAT, json=body) as answer:
            got = await answer.read()
        assert got.startswith(event("one"))
        assert got.count(b'"engine_lost"') == 1
        assert got.endswith(b"}\n\n")
        assert sum(len(one.calls) for one in engines) == 2


async def test_a_request_that_lost_a_split_is_asked_again_when_it_answers(tmp_path: Path) -> None:
    """Its engine ends whenever it loses a node: no fault of the request's. A whole one's may be."""
    path = tmp_path / "engine.sock"

    async def dies_once(call: Call) -> None:
        if len(ran.calls) == 1:
            call.reset()
        else:
            await call.send(plain("200 OK", b"{}"))

    for split, expected, calls in ((True, 200, 2), (False, 503, 1)):
        whole = table_of(path, front=Front(wait_s=3))
        (route,) = whole.routes
        (target,) = route.targets
        route = replace(route, targets=(replace(target, split=split),))
        async with (
            engine(path, dies_once) as ran,
            gateway(tmp_path, replace(whole, routes=(route,))) as here,
        ):
            status, _, headers = await here.post({"model": "m", "prompt": "once"})
        assert (status, len(ran.calls)) == (expected, calls)
        assert ("Retry-After" in headers) is (expected == 503)
