"""What the guards must not take for an end, and what they must: on real engines."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from time import monotonic

import pytest

from meshd.engine.locate import Place
from meshd.gateway.listen import Address
from meshd.guard.member import SILENT_S
from meshd.guard.wire import accept, connect
from tests.wire.guard_harness import guarded, make_split, relay, until

PROMPT = "The quick brown fox"


async def past_silence() -> None:
    """Returns when what fell silent now would have been noticed."""
    due_s = monotonic() + SILENT_S + 1.0
    await until(lambda: monotonic() > due_s, "the time to pass")


@pytest.mark.parametrize("how", ["cut", "silent"])
async def test_a_stream_goes_on_without_its_control_channel(
    engine: Place, tmp_path: Path, how: str
) -> None:
    """Who answers calls is there; the channel is opened anew meanwhile."""
    split = make_split(engine, tmp_path)
    async with (
        relay(split.door) as cable,
        split.rpc_server(),
        split.member_guard(),
        split.host_guard(door=cable.port),
        split.llama_when_reached("--context-shift") as llama,
        split.stream(100_000) as stream,
    ):
        await stream.past(20)
        before, control = cable.connections, cable.open[0]
        if how == "cut":
            await cable.cut(control)
        else:
            cable.swallowed.add(control)
        await past_silence()
        await stream.past(20)
        assert cable.connections > before
        peers = await split.host_peer(), await split.member_peer()
        assert [(one.silences, one.losses, one.reached) for one in peers if one] == [
            (0, 0, True),
            (0, 0, True),
        ]
        assert not llama.ended


async def test_guards_that_stood_still_together_find_each_other_again(
    engine: Place, tmp_path: Path
) -> None:
    """A machine that was paused: nothing was lost, all of it is still to be read."""
    async with guarded(engine, tmp_path) as up, up.split.llama("--context-shift") as llama:
        await up.split.healthy(llama)
        async with up.split.stream(100_000) as stream:
            await stream.past(20)
            for one in (up.host, up.member):
                one.send(signal.SIGSTOP)
            await past_silence()
            for one in (up.host, up.member):
                one.send(signal.SIGCONT)
            await stream.past(20)
            await past_silence()
            await stream.past(20)
        peers = await up.split.host_peer(), await up.split.member_peer()
        assert [(one.silences, one.losses) for one in peers if one] == [(0, 0), (0, 0)]


async def test_a_connection_that_is_half_open_gives_way_to_the_next(
    engine: Place, tmp_path: Path
) -> None:
    """The host gave it up, and the member's end never heard of that."""
    split = make_split(engine, tmp_path)
    async with (
        relay(split.door) as cable,
        split.rpc_server() as rpc,
        split.member_guard(),
        split.host_guard(door=cable.port),
    ):
        async with split.llama_when_reached() as llama, split.stream() as stream:
            await stream.past(20)
            cable.swallowed.add(cable.open[-1])
            async with asyncio.timeout(15):
                await llama.process.wait()
        async with split.llama_when_reached():
            assert await split.complete(PROMPT, 4)
        assert not rpc.ended


async def test_a_guard_that_is_stopped_leaves_rpc_server_whole(
    engine: Place, tmp_path: Path
) -> None:
    """Which would die of an answer that nobody takes any more."""
    async with guarded(engine, tmp_path) as up, up.split.llama() as llama:
        await up.split.healthy(llama)
        async with up.split.stream() as stream:
            await stream.past(20)
            up.member.send(signal.SIGTERM)
            async with asyncio.timeout(10):
                await up.member.process.wait()
                await llama.process.wait()
        async with up.split.member_guard():
            await up.split.wait_member(lambda peer: peer.reached, "rpc-server to answer")
        assert not up.rpc.ended


async def test_an_end_that_takes_nothing_for_long_is_not_hung_up_on() -> None:
    """As an rpc-server that computes: TCP_USER_TIMEOUT would count that, too (tcp(7))."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.setblocking(False)
        called = await connect(Address("127.0.0.1", listener.getsockname()[1]))
        taken = await accept(listener)
        with called.socket, taken:
            for one in (called.socket, taken):
                assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
                assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
