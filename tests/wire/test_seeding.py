"""The tensor cache with real engines: right names, no transfer, and no wrong token from it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from meshd.engine.locate import RPC_SERVER, Place
from meshd.models.fingerprint import fingerprint
from meshd.seeding.background import Seeding
from meshd.seeding.namer import Namer, NamerError
from meshd.seeding.quota import Disk
from meshd.seeding.seed import Tools
from meshd.seeding.store import Store
from meshd.seeding.wish import SeedStage, SeedState, SeedWish
from tools.bench_load import random_model
from tools.bench_load.engines import llama_server, rpc_server

LAYERS = 2
PROMPT, TOKENS = "wxyz", 12
# Three matrices of a layer are above the threshold.
SHAPE = random_model.shape("cached", LAYERS, 512, 22_528)
DISK = Disk(1 << 40, 1 << 39)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model.write(SHAPE, tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def spoken(engine: Place, model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, ...]:
    """What the model says without any split."""
    log = tmp_path_factory.mktemp("log") / "llama"
    with llama_server(engine, model, LAYERS, [], log) as server:
        return server.complete(PROMPT, TOKENS)


def tools(engine: Place, folder: Path, disk: Disk = DISK) -> Tools:
    binary = engine.binary(RPC_SERVER)
    assert binary is not None
    return Tools(Store(folder, disk=lambda _: disk), lambda: binary)


def wish(model: Path, layers: int = LAYERS) -> SeedWish:
    return SeedWish("r", "cached", fingerprint([model]), (str(model),), 0, layers)


def blobs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "rpc").iterdir()}


async def until_state(seeding: Seeding, stage: SeedStage, deadline_s: float = 60) -> SeedState:
    async with asyncio.timeout(deadline_s):
        while (state := seeding.states()["r"]).stage is not stage:
            await asyncio.sleep(0.01)
    return state


async def seeded(engine: Place, folder: Path, one: SeedWish, **options: float) -> SeedState:
    seeding = Seeding(tools(engine, folder), **options)
    try:
        seeding.want((one,))
        return await until_state(seeding, SeedStage.READY)
    finally:
        await seeding.close()


@contextmanager
def read_only(folder: Path) -> Iterator[int | None]:
    """The user for whom the folder is read-only, as it is for engines in their sandbox."""
    if os.geteuid() == 0:
        for parent in folder.parents:
            if parent.stat().st_mode & 0o001 == 0:
                parent.chmod(0o711)
        yield 65534
        return
    (folder / "rpc").chmod(0o555)
    yield None
    (folder / "rpc").chmod(0o755)


def said(engine: Place, model: Path, cache: Path, logs: Path) -> tuple[tuple[int, ...], str]:
    """What the split says with this cache, and its rpc-server's log."""
    log = logs / "rpc.log"
    with (
        rpc_server(engine, cache, log) as port,
        llama_server(engine, model, LAYERS, [port], logs / "llama.log") as server,
    ):
        tokens = server.complete(PROMPT, TOKENS)
    return tokens, log.read_text(errors="replace")


async def test_a_seeded_cache_holds_what_a_load_would_leave(
    engine: Place, model: Path, spoken: tuple[int, ...], tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    assert said(engine, model, own, tmp_path)[0] == spoken
    left = blobs(own)
    assert len(left) == 3 * LAYERS
    state = await seeded(engine, tmp_path / "seeded", wish(model))
    assert state.done_bytes == state.total_bytes == sum(map(len, left.values()))
    assert blobs(tmp_path / "seeded") == left
    assert list((tmp_path / "seeded/work").iterdir()) == []
    tokens, log = said(engine, model, tmp_path / "seeded", tmp_path)
    assert tokens == spoken
    assert "saved to" not in log, "it was sent what it had"


async def test_only_its_own_layers_and_a_lookup_the_next_time(
    engine: Place, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    await seeded(engine, folder, wish(model, layers=1))
    first = {path: path.stat().st_mtime_ns for path in (folder / "rpc").iterdir()}
    assert len(first) == 3
    # An engine that cannot even start: nothing is to be named.
    lookup = Seeding(Tools(Store(folder, disk=lambda _: DISK), lambda: Path("/nonexistent")))
    lookup.want((wish(model, layers=1),))
    await until_state(lookup, SeedStage.READY)
    await lookup.close()
    await seeded(engine, folder, wish(model))
    assert len(list((folder / "rpc").iterdir())) == 3 * LAYERS
    assert {path: path.stat().st_mtime_ns for path in first} == first


async def test_an_engine_that_may_only_read_the_cache(
    engine: Place, model: Path, spoken: tuple[int, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    await seeded(engine, folder, wish(model, layers=1))
    before = blobs(folder)
    log = tmp_path / "rpc.log"
    with (
        read_only(folder) as user,
        rpc_server(engine, folder, log, user=user) as port,
        llama_server(engine, model, LAYERS, [port], tmp_path / "llama.log") as server,
    ):
        assert server.complete(PROMPT, TOKENS) == spoken
    assert blobs(folder) == before, "the other layer's tensors could not be written, and were used"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for at in range(len(content) // 4, len(content) * 3 // 4, 977):
        content[at] ^= 0x40
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_unseen(path: Path) -> None:
    about = path.stat()
    flip(path)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("damage", [flip, truncate])
async def test_a_damaged_file_would_speak_and_does_not(
    engine: Place,
    model: Path,
    spoken: tuple[int, ...],
    tmp_path: Path,
    damage: Callable[[Path], None],
) -> None:
    folder = tmp_path / "c"
    await seeded(engine, folder, wish(model))
    right = blobs(folder)
    for path in (folder / "rpc").iterdir():
        damage(path)
    assert said(engine, model, folder, tmp_path)[0] != spoken, "the engine itself notices nothing"
    state = await seeded(engine, folder, wish(model))
    assert "cached files are seeded anew" in state.detail
    assert blobs(folder) == right
    assert said(engine, model, folder, tmp_path)[0] == spoken


async def test_after_an_unclean_stop_contents_are_read(
    engine: Place, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    await seeded(engine, folder, wish(model))
    right = blobs(folder)
    victim = next((folder / "rpc").iterdir())
    flip_unseen(victim)
    assert (await seeded(engine, folder, wish(model))).detail == "", "size and time are right"
    (folder / "unclean").touch()
    state = await seeded(engine, folder, wish(model))
    assert "damaged" in state.detail
    assert blobs(folder) == right
    assert not (folder / "unclean").exists()


async def test_otherwise_contents_are_read_in_the_background(
    engine: Place, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    await seeded(engine, folder, wish(model))
    right = blobs(folder)
    flip_unseen(next((folder / "rpc").iterdir()))
    seeding = Seeding(tools(engine, folder), look_s=0.01, verify_every_s=-1, verify_bytes_s=1e12)
    seeding.want((wish(model),))
    await until_state(seeding, SeedStage.READY)
    async with asyncio.timeout(60):
        while not (state := seeding.states()["r"]).detail or len(blobs(folder)) < len(right):
            await asyncio.sleep(0.01)
    assert state.stage is SeedStage.READY, "its rpc-server runs"
    await seeding.close()
    assert "damaged" in state.detail
    assert blobs(folder) == right


async def test_what_was_written_to_while_it_is_ready(
    engine: Place, model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "c"
    woken: list[SeedStage] = []
    seeding = Seeding(
        tools(engine, folder), lambda: woken.append(seeding.states()["r"].stage), look_s=0.01
    )
    seeding.want((wish(model),))
    await until_state(seeding, SeedStage.READY)
    right = blobs(folder)
    next((folder / "rpc").iterdir()).unlink()
    await until_state(seeding, SeedStage.READY)
    async with asyncio.timeout(60):
        while not (state := seeding.states()["r"]).detail or len(blobs(folder)) < len(right):
            await asyncio.sleep(0.01)
    assert state.stage is SeedStage.READY, "its rpc-server runs"
    await seeding.close()
    assert "was gone" in state.detail
    assert blobs(folder) == right
    assert set(woken) == {SeedStage.READY}, "its rpc-server runs"
    assert len(woken) == 2


async def test_a_full_disk_is_said_beforehand(engine: Place, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    full = Disk(1 << 40, 40 << 20)
    seeding = Seeding(tools(engine, folder, full))
    seeding.want((wish(model),))
    state = await until_state(seeding, SeedStage.UNSEEDED)
    await seeding.close()
    assert "needs 0.07 GB" in state.detail
    assert state.progress == 1.0
    assert blobs(folder) == {}


def test_a_disk_that_fills_up_meanwhile(engine: Place, tmp_path: Path) -> None:
    # As on a full disk, writing fails; rpc-server says nothing about it, and goes on.
    script = tmp_path / "limited"
    script.write_text(
        f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 8192\nexec {engine.binary(RPC_SERVER)} \"$@\"\n"
    )
    script.chmod(0o755)
    (tmp_path / "work").mkdir()
    with (
        Namer(script, tmp_path / "work") as namer,
        pytest.raises(NamerError, match="is the disk full"),
    ):
        namer.store(12 << 20, [bytes(12 << 20)])


def test_names_are_those_of_the_published_hash(engine: Place, tmp_path: Path) -> None:
    """FNV-1a 64 in Python, for as much as that can be waited for."""
    binary = engine.binary(RPC_SERVER)
    assert binary is not None
    content = os.urandom(1 << 20)
    wanted = 0xCBF29CE484222325
    for byte in content:
        wanted = ((wanted ^ byte) * 0x100000001B3) & (1 << 64) - 1
    with Namer(binary, tmp_path) as namer:
        # The server's own threshold concerns what it stores, not what it is asked.
        small = namer.store(1000, [content[:1000]])
        assert small.cache_name != f"{wanted:016x}"
        larger = namer.store(len(content), [content[:1000], content[1000:]])
        assert larger.cache_name == f"{wanted:016x}"
        assert larger.path.read_bytes() == content


async def test_nobody_wants_it_any_more(engine: Place, model: Path, tmp_path: Path) -> None:
    seeding = Seeding(tools(engine, tmp_path / "c"))
    seeding.want((wish(model),))
    await until_state(seeding, SeedStage.SEEDING)
    seeding.want(())
    assert dict(seeding.states()) == {}
    began_s = time.monotonic()
    await seeding.close()
    assert time.monotonic() - began_s < 10
    assert list((tmp_path / "c/work").iterdir()) == []


async def test_an_rpc_server_that_does_not_start(model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "c", disk=lambda _: DISK)
    seeding = Seeding(Tools(store, lambda: Path("/bin/false")))
    seeding.want((replace(wish(model), layers=1),))
    state = await until_state(seeding, SeedStage.UNSEEDED)
    await seeding.close()
    assert "does not start" in state.detail
