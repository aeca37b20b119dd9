"""A real llama-server and a real rpc-server, with both guards between them."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from meshd.engine.locate import Place
from meshd.guard.allowance import FLOOR_S
from tests.wire.guard_harness import (
    OTHER_SECRET,
    SECRET,
    START_S,
    TERM,
    Child,
    Split,
    free_port,
    guard_metrics,
    guard_status,
    guarded,
    identity,
    make_split,
    relay,
)
from tools.bench_guard.rude import be_rude, probes

# Of the member's guard, while a test lasts: one at the start, one in ten seconds.
PROBES = 6
PROMPT = "The quick brown fox jumps over the lazy dog. In other words,"


async def test_a_split_says_through_its_guards_what_it_says_without(
    engine: Place, tmp_path: Path
) -> None:
    async with guarded(engine, tmp_path) as up:
        split = up.split
        async with split.llama() as llama:
            await split.healthy(llama)
            guarded_text = await split.complete(PROMPT)
            peer = await split.wait_host(lambda peer: peer.calls > 20, "calls to be counted")
            metrics = await guard_metrics(tmp_path / "host.sock")
        assert (peer.protocol, peer.connections, peer.problem) == ("8.0.0", 1, "")
        assert peer.bytes_to_member > 1_000_000
        assert f'meshd_guard_call_seconds_count{{call="get_tensor",peer="{split.member.id}"}}' in (
            metrics
        )
        await split.wait_member(lambda peer: not peer.connections, "the connection to end")
        async with split.llama(rpc=split.front) as llama:
            await split.healthy(llama)
            assert await split.complete(PROMPT) == guarded_text
        assert not up.rpc.ended


async def test_a_frozen_rpc_server_is_noticed_and_ends_llama_server(
    engine: Place, tmp_path: Path
) -> None:
    async with guarded(engine, tmp_path) as up, up.split.llama() as llama:
        await up.split.healthy(llama)
        async with up.split.stream() as stream:
            await stream.past(30)
            up.rpc.send(signal.SIGSTOP)
            async with asyncio.timeout(15):
                await llama.process.wait()
        peer = await up.split.wait_host(lambda peer: peer.silences == 1, "a silence to be counted")
        assert peer.last_trouble.startswith("rpc-server: no byte for 3.")
        assert llama.process.returncode == -signal.SIGABRT


async def test_a_killed_rpc_server_ends_llama_server_at_once(engine: Place, tmp_path: Path) -> None:
    async with guarded(engine, tmp_path) as up, up.split.llama() as llama:
        await up.split.healthy(llama)
        async with up.split.stream() as stream:
            await stream.past(30)
            up.rpc.send(signal.SIGKILL)
            async with asyncio.timeout(5):
                await llama.process.wait()
        assert (await up.split.wait_host(lambda peer: peer.losses == 1, "a loss")).silences == 0
        await up.split.wait_host(lambda peer: not peer.reached, "the member to be away")
        async with up.split.rpc_server():
            await up.split.wait_host(lambda peer: peer.reached, "the new rpc-server to be reached")
            async with up.split.llama() as again:
                await up.split.healthy(again)
                assert await up.split.complete(PROMPT, 4)


async def test_a_prompt_on_a_slow_rpc_server_is_no_silence(engine: Place, tmp_path: Path) -> None:
    """rpc-server gets a fortieth of the time from the start: a micro-batch takes seconds."""
    oldest_s = 0.0

    async def watch(split: Split) -> None:
        nonlocal oldest_s
        while True:
            peer = await split.host_peer()
            oldest_s = max(oldest_s, peer.oldest_call_s if peer else 0.0)
            await asyncio.sleep(0.05)

    async with guarded(engine, tmp_path) as up, AsyncExitStack() as stack:
        tasks = [asyncio.create_task(slow_down(up.rpc)), asyncio.create_task(watch(up.split))]
        try:
            llama = await stack.enter_async_context(up.split.llama("-ub", "256"))
            await up.split.healthy(llama)
            assert await up.split.complete("word " * 500, 2)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            up.rpc.send(signal.SIGCONT)
        peer = await up.split.host_peer()
        assert peer is not None
        assert (peer.silences, peer.losses) == (0, 0)
        assert oldest_s > FLOOR_S, "it was not slow enough to show anything"
        assert not llama.ended


async def slow_down(child: Child) -> None:
    """Let it run for short moments only."""
    while True:
        child.send(signal.SIGSTOP)
        await asyncio.sleep(0.195)
        child.send(signal.SIGCONT)
        await asyncio.sleep(0.005)


async def test_a_killed_llama_server_leaves_rpc_server_whole(engine: Place, tmp_path: Path) -> None:
    """Killed in the middle of a call, so that rpc-server owes an answer to nobody."""
    async with guarded(engine, tmp_path) as up:
        for _ in range(3):
            async with up.split.llama() as llama:
                await up.split.healthy(llama)
                async with up.split.stream() as stream:
                    await stream.past(20)
                    await llama.kill()
            await up.split.wait_member(
                lambda peer: peer.reached and not peer.connections, "the seat to be free"
            )
        assert not up.rpc.ended


async def test_a_second_llama_server_of_the_same_host_does_not_harm_the_first(
    engine: Place, tmp_path: Path
) -> None:
    async with guarded(engine, tmp_path) as up, up.split.llama("--context-shift") as first:
        await up.split.healthy(first)
        async with up.split.stream(100_000) as stream, up.split.llama(port=free_port()) as second:
            await stream.past(20)
            async with asyncio.timeout(30):
                await second.process.wait()
            await stream.past(20)
        assert not up.rpc.ended


@pytest.mark.parametrize("end", ["term", "admitted", "protocol", "mesh"])
async def test_who_has_no_right_or_another_build_is_not_let_through(
    engine: Place, tmp_path: Path, end: str
) -> None:
    split = make_split(engine, tmp_path)
    stranger = identity(tmp_path / "stranger", OTHER_SECRET if end == "mesh" else SECRET)
    member = {
        "term": split.member_guard(term=TERM + 1),
        "admitted": split.member_guard(admit=stranger.id),
        "protocol": split.member_guard(),
        "mesh": split.member_guard(admit=stranger.id),
    }[end]
    host = {
        "term": split.host_guard(),
        "admitted": split.host_guard(),
        "protocol": split.host_guard(protocol="8.0.1"),
        "mesh": split.host_guard(who=stranger),
    }[end]
    words = {
        "term": "term 3 is asked for, this door is open for term 4",
        "admitted": "the member's guard",
        "protocol": "rpc-server speaks protocol 8.0.0, 8.0.1 is expected: upgrade",
        "mesh": "the member's guard",
    }[end]
    async with split.rpc_server() as rpc, member as member_guard, host:
        await split.wait_member(lambda peer: peer.reached, "rpc-server to answer", START_S)
        peer = await split.wait_host(lambda peer: words in peer.problem, words, START_S)
        assert not peer.reached
        async with split.llama() as llama, asyncio.timeout(20):
            await llama.process.wait()
        assert llama.process.returncode == -signal.SIGABRT
        await split.wait_member(lambda peer: not peer.calls, "nothing to have passed")
        assert not rpc.ended
        assert not member_guard.ended
        assert rpc.said().count("Accepted client connection") <= 1 + PROBES


async def test_a_protocol_that_nobody_knows_passes_nothing(engine: Place, tmp_path: Path) -> None:
    split = make_split(engine, tmp_path)
    async with (
        split.rpc_server() as rpc,
        split.member_guard(protocol="9.0.0"),
        split.host_guard(protocol="9.0.0") as host,
    ):
        words = "9.0.0, this meshd knows only major 8: nothing is passed; upgrade meshd"
        await split.wait_host(lambda peer: words in peer.problem, words, START_S)
        await split.wait_member(lambda peer: words in peer.problem, words, START_S)
        assert "Accepted client connection" not in rpc.said()
        assert words in host.said()


async def test_a_way_that_swallows_everything_is_noticed(engine: Place, tmp_path: Path) -> None:
    split = make_split(engine, tmp_path)
    async with (
        relay(split.door) as cable,
        split.rpc_server() as rpc,
        split.member_guard(),
        split.host_guard(door=cable.port),
        split.llama_when_reached() as llama,
    ):
        async with split.stream() as stream:
            await stream.past(30)
            cable.swallow = True
            async with asyncio.timeout(10):
                await llama.process.wait()
        await split.wait_host(lambda peer: not peer.reached and peer.silences == 1, "silence", 10)
        await split.wait_member(lambda peer: peer.silences == 1 and not peer.connections, "it", 15)
        cable.swallow = False
        await cable.cut()
        await split.wait_host(lambda peer: peer.reached, "the member to be back", 15)
        async with split.llama() as again:
            await split.healthy(again)
        assert not rpc.ended


async def test_a_frozen_guard_is_noticed_by_the_other(engine: Place, tmp_path: Path) -> None:
    async with guarded(engine, tmp_path) as up, up.split.llama() as llama:
        await up.split.healthy(llama)
        async with up.split.stream() as stream:
            await stream.past(20)
            up.member.send(signal.SIGSTOP)
            async with asyncio.timeout(10):
                await llama.process.wait()
        await up.split.wait_host(lambda peer: not peer.reached, "the member to be away", 10)
        up.member.send(signal.SIGCONT)
        await up.split.wait_host(lambda peer: peer.reached, "the member to be back", 15)
        up.host.send(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await up.host.process.wait() == 0


async def test_rude_callers_reach_nobody(engine: Place, tmp_path: Path) -> None:
    """Every kind that `make bench-guard` has, and two of its right host's own."""
    async with guarded(engine, tmp_path) as up, up.split.llama("--context-shift") as llama:
        split = up.split
        await split.healthy(llama)
        stranger = identity(tmp_path / "stranger", OTHER_SECRET)
        kinds = probes(split.door, split.local, stranger.tls, split.host.tls, TERM)
        before = up.rpc.said().count("Accepted client connection")
        async with split.stream(1_000_000) as stream:
            await stream.past(20)
            await be_rude(kinds, 3 * len(kinds))
            await stream.past(20)
        assert up.rpc.said().count("Accepted client connection") == before
        status = await guard_status(tmp_path / "member.sock")
        assert status is not None
        assert status.refused > 2 * 6
        await llama.kill()
        await split.wait_member(lambda peer: peer.reached and not peer.connections, "the seat")
        # Nobody has the seat now, so these get through to rpc-server, and do it no harm.
        await be_rude({kind: kinds[kind] for kind in kinds if kind.startswith("local: hello")}, 6)
        await split.wait_member(lambda peer: peer.reached and not peer.connections, "the seat", 30)
        assert up.rpc.said().count("Accepted client connection") > before
        assert not up.rpc.ended
        async with split.llama() as again:
            await split.healthy(again)
