"""A request that kills engines goes through two of them, whichever way it reaches them."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from tests.wire.gateway_harness import Call, Script, engine, gateway, plain, table_of


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
        node = await stack.enter_async_context(gateway(tmp_path, table_of(*paths, slots=1)))
        async with asyncio.timeout(20):
            warm = await asyncio.gather(*(node.post({"model": "m"}) for _ in paths))
        assert [status for status, _, _ in warm] == [200] * 4
        status, body, _ = await node.post({"model": "m", "prompt": "poison"})
        assert (status, json.loads(body)["error"]["code"]) == (502, "engine_lost")
        assert len(dead) == 2
