"""What a client sees of a stream, whatever the engine does to it."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from pathlib import Path

import aiohttp
import pytest

from meshd.gateway.upstreams import Deadlines
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DONE,
    SSE_HEAD,
    Call,
    Script,
    answering,
    chunk,
    engine,
    event,
    gateway,
    streaming,
    table_of,
    until,
)

WHOLE = event("one") + event("two") + DONE


async def _streamed(tmp_path: Path, script: Script, deadlines: Deadlines | None = None) -> bytes:
    """The body that a client gets of one stream, which must end as HTTP wants it."""
    path = tmp_path / "e.sock"
    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path), deadlines=deadlines) as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        return await answer.read()


def _error_after(body: bytes, sent: bytes) -> dict[str, object]:
    """The error event that must follow what was sent, and be all that follows."""
    assert body.startswith(sent)
    rest = body[len(sent) :]
    assert rest.startswith(b"data: ")
    assert rest.endswith(b"\n\n")
    assert rest.count(b"\n\n") == 1
    assert b"[DONE]" not in rest
    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


async def test_single_bytes_come_out_as_they_went_in(tmp_path: Path) -> None:
    pieces = [WHOLE[i : i + 1] for i in range(len(WHOLE))]
    assert await _streamed(tmp_path, streaming(pieces)) == WHOLE


async def test_comments_and_foreign_line_ends_pass(tmp_path: Path) -> None:
    whole = b": ping\r\n\r\n" + event("x") + b"event: odd\r\ndata: y\r\n\r\n" + DONE
    assert await _streamed(tmp_path, streaming([whole[:7], whole[7:30], whole[30:]])) == whole


async def test_an_event_of_three_mebibytes_passes_whole(tmp_path: Path) -> None:
    whole = event("z" * (3 << 20)) + DONE
    pieces = [whole[i : i + 50_000] for i in range(0, len(whole), 50_000)]
    assert await _streamed(tmp_path, streaming(pieces)) == whole


async def test_each_event_is_there_before_the_next_is_made(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    seen = asyncio.Queue[None]()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD)
        for number in range(20):
            await call.send(chunk(event(str(number))))
            # Held back anywhere, this would wait for ever.
            await asyncio.wait_for(seen.get(), 5)
        await call.send(chunk(DONE) + CHUNKED_END)

    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path)) as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        got = b""
        for number in range(20):
            while not got.endswith(event(str(number))):
                got += await answer.content.readany()
            seen.put_nowait(None)
        assert await answer.read() == DONE


@pytest.mark.parametrize("cut", [0, 1, 20, len(event("two")) - 1])
async def test_an_engine_that_dies_leaves_whole_events_and_an_error(
    tmp_path: Path, cut: int
) -> None:
    script = streaming([event("one"), event("two")[:cut] or event("two")], end=b"")
    body = await _streamed(tmp_path, script)
    sent = event("one") if cut else event("one") + event("two")
    assert _error_after(body, sent)["code"] == "engine_lost"


async def test_an_engine_that_is_reset_leaves_an_error(tmp_path: Path) -> None:
    path, got = tmp_path / "e.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        await got.wait()
        call.reset()

    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path)) as node,
        node.http.post(node.base + CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        assert await answer.content.readany() == event("one")
        got.set()
        assert _error_after(await answer.read(), b"")["code"] == "engine_lost"


async def test_death_within_an_overlong_event_still_ends_in_an_error_event(tmp_path: Path) -> None:
    long = event("z" * (2 << 20))[:-2]
    body = await _streamed(tmp_path, streaming([long], end=b""))
    sent, _, last = body.rpartition(b"\n\ndata: ")
    assert long.startswith(sent)
    assert json.loads(last)["error"]["code"] == "engine_lost"


async def test_a_clean_end_without_done_is_not_taken_for_one(tmp_path: Path) -> None:
    body = await _streamed(tmp_path, streaming([event("one")]))
    assert _error_after(body, event("one"))["code"] == "engine_lost"


async def test_plain_text_after_events_becomes_the_error(tmp_path: Path) -> None:
    text = b"proxy error: Failed to read connection"
    body = await _streamed(tmp_path, streaming([event("one"), text]))
    assert _error_after(body, event("one"))["message"] == text.decode()


async def test_an_error_event_of_the_engine_is_not_doubled(tmp_path: Path) -> None:
    own = b'data: {"error":{"code":500,"message":"no","type":"server_error"}}\n\n'
    body = await _streamed(tmp_path, streaming([event("one"), own]))
    error = _error_after(body, event("one"))
    assert (error["message"], error["type"], error["code"]) == ("no", "server_error", None)


async def test_an_engine_that_falls_silent_is_given_up(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + chunk(event("one")))
        await call.hung_up()

    body = await _streamed(tmp_path, script, Deadlines(idle=0.3))
    assert _error_after(body, event("one"))["code"] == "engine_timeout"


async def test_a_slow_reader_holds_the_engine_back_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    size, count = 64 * 1024, 1024
    sent = 0

    async def script(call: Call) -> None:
        nonlocal sent
        await call.send(SSE_HEAD)
        for _ in range(count):
            await call.send(chunk(event("z" * size)))
            sent += 1
        await call.send(chunk(DONE) + CHUNKED_END)

    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path)) as node,
        node.http.post(
            node.base + CHAT, json={"model": "m", "stream": True}, read_bufsize=1024
        ) as answer,
    ):
        last, since = -1, time.monotonic()

        def stuck() -> bool:
            nonlocal last, since
            if sent != last:
                last, since = sent, time.monotonic()
            return time.monotonic() - since > 0.3

        await until(stuck)
        # Kernel buffers on two sockets, and ours; not the 64 MiB that the engine would send.
        assert 0 < sent * size < 16 << 20
        assert await answer.read() == event("z" * size) * count + DONE


async def test_a_client_that_stalls_for_ever_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    gone = asyncio.Event()

    async def script(call: Call) -> None:
        try:
            await call.send(SSE_HEAD)
            while True:
                await call.send(chunk(event("z" * 65536)))
        finally:
            gone.set()

    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path), deadlines=Deadlines(idle=0.3)) as node,
        node.http.post(node.base + CHAT, json={"model": "m"}, read_bufsize=1024) as answer,
    ):
        assert answer.status == 200
        await asyncio.wait_for(gone.wait(), 10)


@pytest.mark.parametrize("head", [b"", SSE_HEAD, SSE_HEAD + chunk(event("one"))])
async def test_a_client_that_leaves_frees_the_engine_at_once(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "e.sock"
    began, ended = asyncio.Event(), asyncio.Event()

    async def script(call: Call) -> None:
        await call.send(head)
        began.set()
        await call.hung_up()
        ended.set()

    async with engine(path, script), gateway(tmp_path, table_of(path)) as node:
        async with aiohttp.ClientSession() as client:
            asking = asyncio.create_task(client.post(node.base + CHAT, json={"model": "m"}))
            await asyncio.wait_for(began.wait(), 5)
            if head.endswith(chunk(event("one"))):
                # Before the first event the client gets nothing, not even a head.
                (await asking).close()
            asking.cancel()
        await asyncio.wait_for(ended.wait(), 1.0)
        in_flight = 'meshd_num_requests_running{model="m",place="here"}'

        async def free() -> bool:
            return await node.metric(in_flight) == 0

        await until(free)
        left = f'meshd_gateway_requests_total{{code="499",endpoint="{CHAT}",model="m"}}'
        assert await node.metric(left) == 1


async def test_two_hundred_streams_at_once_are_all_whole(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    streams, at_once = 200, 0
    all_here = asyncio.Event()
    names = itertools.count()

    async def script(call: Call) -> None:
        nonlocal at_once
        name = next(names)
        at_once += 1
        if at_once == streams:
            all_here.set()
        await call.send(SSE_HEAD)
        await asyncio.wait_for(all_here.wait(), 30)
        for number in range(10):
            await call.send(chunk(event(f"{name}-{number}")))
        await call.send(chunk(DONE) + CHUNKED_END)

    # The engine's backlog is 5, and it has to share one event loop with us and the clients.
    patient = Deadlines(connect=30)
    async with (
        engine(path, script),
        gateway(tmp_path, table_of(path, slots=streams), deadlines=patient) as node,
    ):
        answers = await asyncio.gather(
            *(node.post({"model": "m", "stream": True}) for _ in range(streams))
        )
        expected = {
            b"".join(event(f"{name}-{n}") for n in range(10)) + DONE for name in range(streams)
        }
        assert {body for _, body, _ in answers} == expected
        assert await node.metric('meshd_num_requests_running{model="m",place="here"}') == 0


async def test_an_answer_that_is_not_a_stream_passes_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()), gateway(tmp_path, table_of(path)) as node:
        status, body, heads = await node.post({"model": "m"})
        assert (status, body) == (200, b'{"said":"pong"}')
        assert heads["Server"].startswith("meshd/")
        assert heads["X-Mesh-Node"] == "local"
