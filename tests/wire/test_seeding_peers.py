"""Tensors from a peer's file, over the mesh's peer door: only what is allowed, whole, and right."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from meshd.engine.locate import RPC_SERVER, Place
from meshd.gateway.model_files import RANGE_BYTES_MAX, TRANSFERS_MAX
from meshd.gateway.model_table import SharedModel, write_models
from meshd.mesh.peer_http import SourceError
from meshd.models.fingerprint import fingerprint
from meshd.models.gguf_header import read_header
from meshd.seeding.background import Seeding
from meshd.seeding.fetch import Fetch
from meshd.seeding.peer_source import PeerSource
from meshd.seeding.quota import Disk
from meshd.seeding.seed import Tools
from meshd.seeding.store import Store
from meshd.seeding.tensor_list import seedable
from meshd.seeding.wish import SeedStage, SeedState, SeedWish
from tests.wire.mesh_harness import Node, caller, member, mute, name_of, node
from tools.bench_load import random_model

SHAPE = random_model.shape("cached", 2, 512, 22_528)
DISK = Disk(1 << 40, 1 << 39)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(SHAPE, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def content(model: Path) -> str:
    return fingerprint([model])


@asynccontextmanager
async def sharing(
    folder: Path, name: str, model: Path, manifest: Path | None = None
) -> AsyncIterator[Node]:
    async with node(folder, name) as one:
        path = one.running.routes.with_name("models.json")
        shared = SharedModel((str(model),), str(manifest or ""))
        await asyncio.to_thread(write_models, path, {fingerprint([model]): shared})
        async with asyncio.timeout(10):
            while not await answers(folder, one):
                await asyncio.sleep(0.01)
        yield one


async def answers(folder: Path, one: Node) -> bool:
    who = member(folder, "asks")
    try:
        async with (
            caller(who) as http,
            http.get(f"https://{one.address}/mesh/health", server_hostname=name_of(one)) as answer,
        ):
            return answer.status == 200
    except aiohttp.ClientError:
        return False


def tools(engine: Place, folder: Path, tls: Path) -> Tools:
    binary = engine.binary(RPC_SERVER)
    assert binary is not None
    return Tools(Store(folder, disk=lambda _: DISK), lambda: binary, tls)


def wish(content: str, *sources: tuple[str, str], files: tuple[str, ...] = ()) -> SeedWish:
    return SeedWish("r", "cached", content, files, 0, 1, sources)


async def settled(seeding: Seeding) -> SeedState:
    async with asyncio.timeout(60):
        while (state := seeding.states()["r"]).stage not in (SeedStage.READY, SeedStage.UNSEEDED):
            await asyncio.sleep(0.01)
    return state


async def seeded(tools: Tools, one: SeedWish) -> SeedState:
    seeding = Seeding(tools)
    seeding.want((one,))
    try:
        return await settled(seeding)
    finally:
        await seeding.close()


def blobs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "rpc").iterdir()}


async def test_a_member_without_the_file(
    engine: Place, model: Path, content: str, tmp_path: Path
) -> None:
    tls = member(tmp_path, "me").tls
    await seeded(tools(engine, tmp_path / "own", tls), wish(content, files=(str(model),)))
    async with sharing(tmp_path, "b", model) as b:
        state = await seeded(tools(engine, tmp_path / "c", tls), wish(content, (b.id, b.address)))
    assert state.stage is SeedStage.READY
    assert blobs(tmp_path / "c") == blobs(tmp_path / "own")
    assert not any((tmp_path / "c/partial").rglob("*.*"))
    assert list((tmp_path / "c/partial" / content).iterdir()) == []


async def test_the_next_peer_where_one_is_silent_gone_or_another(
    engine: Place, model: Path, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshd.mesh.peer_http.SILENCE_S", 0.3)
    monkeypatch.setattr("meshd.mesh.peer_http.CONNECT_S", 0.3)
    tls = member(tmp_path, "me").tls
    async with (
        sharing(tmp_path, "b", model) as b,
        node(tmp_path, "without") as without,
        mute() as silent,
    ):
        one = wish(
            content,
            (without.id, "127.0.0.1:9"),
            (without.id, silent),
            (without.id, without.address),
            (without.id, b.address),
            (b.id, b.address),
        )
        state = await seeded(tools(engine, tmp_path / "c", tls), one)
    assert state.stage is SeedStage.READY


async def test_no_peer_gives_it(
    engine: Place, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshd.seeding.fetch.PAUSE_S", 0.0)
    tls = member(tmp_path, "me").tls
    async with node(tmp_path, "without") as without:
        one = wish(content, (without.id, without.address))
        state = await seeded(tools(engine, tmp_path / "c", tls), one)
    assert state.stage is SeedStage.UNSEEDED
    assert "no peer gives its weights" in state.detail


async def test_a_member_of_another_mesh_is_no_source(
    engine: Place, model: Path, content: str, tmp_path: Path
) -> None:
    stranger = member(tmp_path, "me", b"another-secret-of-the-right-length-2345")
    async with sharing(tmp_path, "b", model) as b:
        source = PeerSource(b.id, b.address, stranger.tls)
        with pytest.raises(SourceError, match="another mesh"):
            await asyncio.to_thread(source.headers, content)


async def test_another_node_at_this_address_is_no_source(
    model: Path, content: str, tmp_path: Path
) -> None:
    me = member(tmp_path, "me")
    async with sharing(tmp_path, "b", model) as b:
        source = PeerSource(me.id, b.address, me.tls)
        with pytest.raises(SourceError, match="another node answers"):
            await asyncio.to_thread(source.headers, content)


async def test_what_was_fetched_is_not_fetched_again(
    model: Path, content: str, tmp_path: Path
) -> None:
    tls = member(tmp_path, "me").tls
    tensor = seedable([read_header(model)])[0]
    right = (await asyncio.to_thread(model.read_bytes))[
        tensor.offset : tensor.offset + tensor.size_bytes
    ]

    class EnoughError(Exception):
        pass

    def half(count: int) -> None:
        if count >= tensor.size_bytes // 2:
            raise EnoughError

    async with sharing(tmp_path, "b", model) as b:
        one = wish(content, (b.id, b.address))
        first = Fetch(tls, one, tmp_path / "partial")
        with pytest.raises(EnoughError):
            await asyncio.to_thread(lambda: list(first.pieces(tensor, half)))
        seen: list[int] = []
        second = Fetch(tls, one, tmp_path / "partial")
        got = await asyncio.to_thread(lambda: b"".join(second.pieces(tensor, seen.append)))
    assert seen[0] >= tensor.size_bytes // 2
    assert got == right


async def test_a_peer_whose_file_rots(
    engine: Place, model: Path, content: str, tmp_path: Path
) -> None:
    """Its manifest says what the tensor was; another peer's is taken."""
    tls = member(tmp_path, "me").tls
    await seeded(tools(engine, tmp_path / "own", tls), wish(content, files=(str(model),)))
    tensor = seedable([read_header(model)])[0]
    rotten = tmp_path / "rotten.gguf"
    await asyncio.to_thread(shutil.copyfile, model, rotten)
    with rotten.open("r+b") as file:
        file.seek(tensor.offset + 12_345)
        file.write(b"rot")
    manifest = tmp_path / f"own/manifests/{content}.json"
    async with sharing(tmp_path, "b", model, manifest) as b, node(tmp_path, "r") as r:
        path = r.running.routes.with_name("models.json")
        shared = SharedModel((str(rotten),), str(manifest))
        await asyncio.to_thread(write_models, path, {content: shared})
        both = wish(content, (r.id, r.address), (b.id, b.address))
        state = await seeded(tools(engine, tmp_path / "c", tls), both)
        assert state.stage is SeedStage.READY
        assert blobs(tmp_path / "c") == blobs(tmp_path / "own")
        alone = await seeded(tools(engine, tmp_path / "d", tls), wish(content, (r.id, r.address)))
    assert alone.stage is SeedStage.UNSEEDED
    assert "is damaged at every peer" in alone.detail
    assert blobs(tmp_path / "d") == {}


@pytest.mark.parametrize(
    ("path", "range_", "status"),
    [
        ("{content}/0", "bytes=0-3", 206),
        ("{content}/0", "", 400),
        ("{content}/0", "bytes=0-1,4-5", 400),
        ("{content}/0", "bytes=-5", 400),
        ("{content}/0", "bytes=9-3", 416),
        ("{content}/0", "bytes=99999999999-99999999999", 416),
        ("{content}/1", "bytes=0-3", 404),
        ("{content}/manifest", "", 404),
        ("0123456789abcdef/0", "bytes=0-3", 404),
        ("..%2f..%2fetc/0", "bytes=0-3", 404),
        ("{content}/..%2f0", "bytes=0-3", 404),
    ],
)
async def test_only_what_is_allowed_is_served(
    model: Path, content: str, tmp_path: Path, path: str, range_: str, status: int
) -> None:
    size_bytes = read_header(model).file_bytes
    async with sharing(tmp_path, "b", model) as b, caller(member(tmp_path, "me")) as http:
        url = f"https://{b.address}/mesh/v1/models/{path.format(content=content)}"
        headers = {"Range": range_} if range_ else {}
        async with http.get(url, headers=headers, server_hostname=name_of(b)) as answer:
            body = await answer.read()
    assert answer.status == status
    if status == 206:
        assert body == b"GGUF"
        assert answer.headers["X-Mesh-Parts"] == "1"
        assert answer.headers["Content-Range"] == f"bytes 0-3/{size_bytes}"
    else:
        assert b"error" in body


async def test_a_few_transfers_at_a_time(model: Path, content: str, tmp_path: Path) -> None:
    async with sharing(tmp_path, "b", model) as b, caller(member(tmp_path, "me")) as http:
        url = f"https://{b.address}/mesh/v1/models/{content}/0"
        whole = {"Range": f"bytes=0-{RANGE_BYTES_MAX - 1}"}

        def get():  # type: ignore[no-untyped-def]
            return http.get(url, headers=whole, server_hostname=name_of(b))

        # They read their heads only, so that nothing but these is sent.
        slow = [await get() for _ in range(TRANSFERS_MAX)]
        assert [one.status for one in slow] == [206] * TRANSFERS_MAX
        refused = await get()
        assert refused.status == 503
        assert "Retry-After" in refused.headers
        for one in slow:
            one.close()
        async with asyncio.timeout(10):
            while (again := await get()).status != 206:
                await asyncio.sleep(0.01)
        again.close()


async def test_one_that_takes_nothing_is_left(
    model: Path, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshd.gateway.model_files.PIECE_S", 0.2)
    monkeypatch.setattr("meshd.gateway.model_files.TRANSFERS_MAX", 1)
    async with sharing(tmp_path, "b", model) as b, caller(member(tmp_path, "me")) as http:
        url = f"https://{b.address}/mesh/v1/models/{content}/0"
        whole = {"Range": f"bytes=0-{RANGE_BYTES_MAX - 1}"}

        def get():  # type: ignore[no-untyped-def]
            return http.get(url, headers=whole, server_hostname=name_of(b))

        slow = await get()
        async with asyncio.timeout(20):
            while (again := await get()).status != 206:
                await asyncio.sleep(0.01)
        again.close()
        with pytest.raises(aiohttp.ClientError):
            await slow.read()
