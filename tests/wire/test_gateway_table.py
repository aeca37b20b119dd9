"""The gateway follows its routing table, and outlives every way in which it can go bad."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from meshd.gateway.routes import RoutingTable, encode
from meshd.gateway.table_file import write_table
from tests.wire.gateway_harness import Running, answering, engine, gateway, table_of, until


async def _generation(node: Running) -> float:
    return await node.metric("meshd_gateway_table_generation")


async def _ready(node: Running) -> tuple[int, dict[str, object]]:
    async with node.http.get(node.base + "/readyz") as answer:
        return answer.status, await answer.json()


async def test_a_replaced_table_is_obeyed_within_half_a_second(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), gateway(tmp_path, table_of(path)) as node:
        took: list[float] = []
        for generation in range(2, 8):
            name = f"m{generation}"
            await asyncio.to_thread(
                write_table, node.routes, table_of(path, model=name, generation=generation)
            )

            async def served(name: str = name) -> bool:
                return (await node.post({"model": name}))[0] == 200

            took.append(await until(served))
        # The first may come before the watch stands; a safety look each second finds it then.
        assert sorted(took)[len(took) // 2] < 0.5
        assert (await node.post({"model": "m2"}))[0] == 404


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        encode(table_of(Path("/e.sock"), generation=9))[:-20],
        b'{"schema":2,"routes":"of another shape"}',
        b'{"schema":1,"routes":[{"model":5,"state":"ready"}]}',
        b'{"routes":[]}',
    ],
)
async def test_a_bad_table_leaves_the_last_good_one_and_shows(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), gateway(tmp_path, table_of(path)) as node:
        await asyncio.to_thread(node.routes.write_bytes, text)

        async def noticed() -> bool:
            return await node.metric("meshd_gateway_table_valid") == 0

        await until(noticed)
        assert await node.metric("meshd_gateway_table_errors_total") >= 1
        status, report = await _ready(node)
        assert status == 200
        assert report["reasons"]
        assert (await node.post({"model": "m"}))[0] == 200
        await asyncio.to_thread(write_table, node.routes, table_of(path, generation=10))

        async def mended() -> bool:
            return await _generation(node) == 10

        await until(mended)
        assert await node.metric("meshd_gateway_table_valid") == 1


async def test_a_folder_that_goes_and_comes_back_is_followed(tmp_path: Path) -> None:
    path, folder = tmp_path / "e.sock", tmp_path / "run"
    folder.mkdir()
    async with engine(path, answering()), gateway(folder, table_of(path)) as node:
        await asyncio.to_thread(shutil.rmtree, folder)

        async def noticed() -> bool:
            return await node.metric("meshd_gateway_table_valid") == 0

        await until(noticed)
        assert (await node.post({"model": "m"}))[0] == 200
        await asyncio.to_thread(os.mkdir, folder)
        await asyncio.to_thread(write_table, node.routes, table_of(path, generation=5))

        async def followed() -> bool:
            return await _generation(node) == 5

        await until(followed)


async def test_a_gateway_without_a_table_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), gateway(tmp_path, None) as node:
        async with node.http.get(node.base + "/healthz") as answer:
            assert answer.status == 200
        status, report = await _ready(node)
        assert status == 503
        assert "No such file" in str(report["reasons"])
        async with node.http.get(node.base + "/v1/models") as answer:
            assert answer.status == 503
            assert "Retry-After" in answer.headers
        assert (await node.post({"model": "m"}))[0] == 503
        await asyncio.to_thread(write_table, node.routes, table_of(path))

        async def ready() -> bool:
            return (await _ready(node))[0] == 200

        await until(ready)
        assert (await node.post({"model": "m"}))[0] == 200


async def test_a_table_without_models_is_not_ready(tmp_path: Path) -> None:
    async with gateway(tmp_path, RoutingTable()) as node:
        status, report = await _ready(node)
        assert (status, report["reasons"]) == (503, ["the routing table lists no model"])
