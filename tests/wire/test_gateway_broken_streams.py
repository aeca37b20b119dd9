"""Streams that break where only a scripted engine can be made to break them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.upstreams import Deadlines
from tests.unit.streams import events_of, heard, recordings
from tests.wire.gateway_harness import (
    CHUNKED_END,
    DONE,
    SSE_HEAD,
    Call,
    Script,
    chunk,
    engine,
    gateway,
    plain,
    streaming,
)

# Of each protocol one that llama-server made.
NAMES = ("chat", "completions", "messages", "responses")


def _events(name: str) -> list[bytes]:
    return events_of(recordings()[name].whole.encode())


def _texts(name: str, count: int) -> list[bytes]:
    """Its events up to the one with the so-manyth text."""
    events, texts = _events(name), 0
    for place, event in enumerate(events, 1):
        texts += bool(heard(event).text)
        if texts == count:
            return events[:place]
    raise AssertionError("so many are not in it")


def _dying(events: list[bytes]) -> Script:
    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + b"".join(map(chunk, events)))
        call.reset()

    return script


async def _ask(
    tmp_path: Path,
    name: str,
    *scripts: Script,
    request: dict[str, Any] | None = None,
    weights: str = "same",
    deadlines: Deadlines | None = None,
) -> tuple[bytes, list[int]]:
    """The stream that a client gets, and how often each engine was asked."""
    recorded = recordings()[name]
    paths = [tmp_path / f"{number}.sock" for number in range(len(scripts))]
    targets = tuple(Target("local", str(path), True, 4, weights=weights) for path in paths)
    table = RoutingTable(
        generation=1,
        routes=(Route("tiny", ModelState.READY, targets),),
        front=Front(wait_s=0),
    )
    body = request or json.loads(recorded.body)
    async with asyncio.TaskGroup(), gateway(tmp_path, table, deadlines=deadlines) as node:
        # The first one is said to be dead, so it answers no probes.
        running = [
            engine(path, script, healthy=path != paths[0])
            for path, script in zip(paths, scripts, strict=True)
        ]
        engines = [await one.__aenter__() for one in running]
        try:
            async with node.http.post(
                node.base + recorded.path, json=body, headers={"X-Request-Timeout": "0.3"}
            ) as answer:
                assert answer.status == 200
                return await answer.read(), [len(one.calls) for one in engines]
        finally:
            for one in running:
                await one.__aexit__(None, None, None)


def _failed(name: str, body: bytes, sent: bytes) -> dict[str, Any]:
    """The error, which must be all that follows what was sent but for comments."""
    assert body.startswith(sent)
    rest = [one for one in events_of(body[len(sent) :]) if not one.startswith(b":")]
    assert len(rest) == 1, rest
    lines = rest[0].decode().split("\n")
    assert lines[-2:] == ["", ""]
    document = json.loads(lines[-3].removeprefix("data: "))
    named = name in ("messages", "responses")
    assert (lines[0] == "event: error") == named
    assert (document.get("type") == "error") == named
    if name == "messages":
        assert {"type", "message"} <= set(document["error"])
    else:
        assert set(document["error"]) >= {"message", "type", "param", "code"}
    error: dict[str, Any] = document["error"]
    return error


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", ["", "same"])
async def test_a_clean_end_without_the_protocols_own_is_an_error(
    tmp_path: Path, name: str, weights: str
) -> None:
    events = _texts(name, 3)
    body, _ = await _ask(tmp_path, name, streaming(events), weights=weights)
    assert _failed(name, body, b"".join(events))["code"] == "engine_lost"


@pytest.mark.parametrize("name", NAMES)
async def test_a_death_after_the_last_word_is_not_seen(tmp_path: Path, name: str) -> None:
    """All but the end was sent: nobody need be asked for that."""
    events = _events(name)
    finished = next(n for n, event in enumerate(events, 1) if _finishes(event))
    body, asked = await _ask(tmp_path, name, _dying(events[:finished]), _dying([]))
    got, unbroken = heard(body), heard(b"".join(events))
    assert (got.text, got.finish, got.frames) == (unbroken.text, unbroken.finish, unbroken.frames)
    assert not got.comments
    assert sorted(asked) == [0, 1]


def _finishes(event: bytes) -> bool:
    return bool(heard(event).finish) or b"response.output_text.done" in event


@pytest.mark.parametrize("name", NAMES)
async def test_a_death_after_the_end_is_not_seen(tmp_path: Path, name: str) -> None:
    events = _events(name)
    body, _ = await _ask(tmp_path, name, _dying(events))
    assert body == b"".join(events)


TOOL: dict[str, bytes] = {
    "chat": b'data: {"choices":[{"index":0,"finish_reason":null,"delta":{"tool_calls":[{"index":0,'
    b'"id":"c","type":"function","function":{"name":"f","arguments":"{"}}]}}],"created":1,"id":"x"}'
    b"\n\n",
    "messages": b'event: content_block_start\ndata: {"type":"content_block_start","index":1,'
    b'"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}\n\n',
    "responses": b'event: response.output_item.added\ndata: {"type":"response.output_item.added",'
    b'"item":{"type":"function_call","id":"f","call_id":"c","name":"f","arguments":""}}\n\n',
}


@pytest.mark.parametrize("name", TOOL)
async def test_half_a_tool_call_is_not_gone_on_with(tmp_path: Path, name: str) -> None:
    events = [*_texts(name, 2), TOOL[name]]
    body, asked = await _ask(tmp_path, name, _dying(events), _dying([]))
    assert "half of a tool call" in _failed(name, body, b"".join(events))["message"]
    assert sorted(asked) == [0, 1]


async def _refusing(call: Call) -> None:
    await call.send(plain("400 Bad Request", b'{"error":{"message":"no","code":400}}'))


async def _overloaded(call: Call) -> None:
    await call.send(plain("500 Internal Server Error", b'{"error":{"message":"oh","code":500}}'))


async def _loading(call: Call) -> None:
    await call.send(plain("503 Service Unavailable", b'{"error":{"message":"Loading model"}}'))


async def _other_answer(call: Call) -> None:
    await call.send(plain("200 OK", b'{"choices":[]}'))


async def _error_event(call: Call) -> None:
    error = b'data: {"error":{"message":"no","code":500}}\n\n'
    await call.send(SSE_HEAD + chunk(error) + CHUNKED_END)


async def _nonsense(call: Call) -> None:
    await call.send(SSE_HEAD + chunk(b"data: {no json\n\n") + chunk(DONE) + CHUNKED_END)


async def _no_http(call: Call) -> None:
    await call.send(b"hello\r\n\r\n")
    call.writer.close()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "script",
    [_refusing, _overloaded, _loading, _other_answer, _error_event, _nonsense, _no_http,
     _dying([]), streaming([])],
    ids=["400", "500", "503", "no-stream", "error-event", "nonsense", "no-http", "reset", "empty"],
)  # fmt: skip
async def test_a_replica_that_does_not_go_on_leaves_an_error(
    tmp_path: Path, name: str, script: Script
) -> None:
    events = _texts(name, 3)
    body, asked = await _ask(tmp_path, name, _dying(events), script)
    assert _failed(name, body, b"".join(events))["code"] == "engine_lost"
    assert asked[0] == 1
    assert asked[1] >= 1


@pytest.mark.parametrize("name", NAMES)
async def test_of_two_replicas_the_one_that_can_goes_on(tmp_path: Path, name: str) -> None:
    events = _events(name)
    had = _texts(name, 3)
    body, asked = await _ask(
        tmp_path, name, _dying(had), _overloaded, streaming([recordings()[name].again.encode()])
    )
    got, unbroken = heard(body), heard(b"".join(events))
    assert (got.text, got.finish, got.frames) == (unbroken.text, unbroken.finish, unbroken.frames)
    assert got.usage == unbroken.usage
    assert asked == [1, 1, 1]


async def test_a_replay_that_differs_becomes_a_prefill(tmp_path: Path) -> None:
    recorded = recordings()["chat"]
    had = _texts("chat", 3)
    rest = recorded.rests[len(had)]

    async def script(call: Call) -> None:
        if json.loads(call.body) == json.loads(recorded.body):
            other = recorded.again.replace('" lists"', '" shows"')
            await streaming([other.encode()])(call)
        else:
            assert json.loads(call.body) == json.loads(rest.body)
            await streaming([rest.stream.encode()])(call)

    request = json.loads(recorded.body)
    body, asked = await _ask(tmp_path, "chat", _dying(had), script, request=request)
    got, unbroken = heard(body), heard(recorded.whole.encode())
    assert (got.text, got.finish, got.usage) == (unbroken.text, unbroken.finish, unbroken.usage)
    assert asked == [1, 2]


async def test_an_engine_that_falls_silent_in_a_stream_ends_it_with_an_error(
    tmp_path: Path,
) -> None:
    """On this node only the table, or the deadline, says that it hangs."""
    events = _texts("chat", 3)

    async def script(call: Call) -> None:
        await call.send(SSE_HEAD + b"".join(map(chunk, events)))
        await call.hung_up()

    body, _ = await _ask(tmp_path, "chat", script, _dying([]), deadlines=Deadlines(idle=0.3))
    assert _failed("chat", body, b"".join(events))["code"] == "engine_timeout"
