"""An engine that fails a request before its first byte is replaced, and not asked again."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from meshd.gateway.table_file import write_table
from meshd.gateway.upstreams import Deadlines
from tests.wire.gateway_harness import (
    CHAT,
    Call,
    answering,
    engine,
    gateway,
    plain,
    table_of,
    until,
)


async def _reset(call: Call) -> None:
    call.reset()


async def _close(call: Call) -> None:
    call.writer.close()


def _dead_socket(path: Path) -> None:
    """A socket file as a killed engine leaves it: connections are refused."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _error(body: bytes) -> dict[str, object]:
    error: dict[str, object] = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("leftover", [True, False])
async def test_a_dead_engine_is_passed_over_and_not_tried_again(
    tmp_path: Path, leftover: bool
) -> None:
    dead, alive = tmp_path / "dead.sock", tmp_path / "alive.sock"
    if leftover:
        _dead_socket(dead)
    async with engine(alive, answering()), gateway(tmp_path, table_of(dead, alive)) as node:
        for _ in range(5):
            status, body, _ = await node.post({"model": "m"})
            assert (status, body) == (200, b'{"said":"pong"}')
        refused = 'meshd_upstream_errors_total{kind="refused",model="m"}'
        assert await node.metric(refused) == 1
        assert await node.metric("meshd_gateway_suspect_targets") == 1


@pytest.mark.parametrize("script", [_reset, _close])
async def test_a_hang_up_before_the_first_byte_is_retried_elsewhere(
    tmp_path: Path, script: object
) -> None:
    bad, good = tmp_path / "bad.sock", tmp_path / "good.sock"
    async with (
        engine(bad, script, healthy=False) as failing,  # type: ignore[arg-type]
        engine(good, answering()) as other,
        gateway(tmp_path, table_of(bad, good)) as node,
    ):
        body = {"model": "m", "messages": ["the very same"]}
        for _ in range(3):
            assert (await node.post(body))[0] == 200
        assert len(failing.calls) == 1
        assert {call.body for call in other.calls} == {failing.calls[0].body}


async def test_without_another_engine_the_client_is_told_to_come_back(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with gateway(tmp_path, table_of(path)) as node:
        status, body, heads = await node.post({"model": "m"})
        assert status == 503
        assert _error(body)["code"] == "model_unreachable"
        assert int(heads["Retry-After"]) > 0
        async with node.http.get(node.base + "/readyz") as answer:
            assert answer.status == 503
            assert "model m: no engine answers" in (await answer.json())["reasons"]
        async with engine(path, answering()):
            # The table does not change: a probe finds the engine again.

            async def served() -> bool:
                return (await node.post({"model": "m"}))[0] == 200

            await until(served)


async def test_a_changed_table_is_believed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, _reset, healthy=False) as scripted,
        gateway(tmp_path, table_of(path)) as node,
    ):
        assert (await node.post({"model": "m"}))[0] == 503
        scripted.script = answering()
        await asyncio.to_thread(write_table, node.routes, table_of(path, generation=2))

        async def served() -> bool:
            return (await node.post({"model": "m"}))[0] == 200

        assert await until(served) < 2


async def test_a_request_that_kills_engines_does_not_kill_them_all(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.sock" for number in range(3)]
    async with (
        engine(paths[0], _reset) as first,
        engine(paths[1], _reset) as second,
        engine(paths[2], _reset) as third,
        gateway(tmp_path, table_of(*paths)) as node,
    ):
        status, body, _ = await node.post({"model": "m"})
        assert status == 502
        assert _error(body)["code"] == "engine_lost"
        assert [len(e.calls) for e in (first, second, third)] == [1, 1, 0]


async def test_an_engine_that_is_still_loading_is_passed_over(tmp_path: Path) -> None:
    async def loading(call: Call) -> None:
        error = b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
        await call.send(plain("503 Service Unavailable", error))

    slow, ready = tmp_path / "slow.sock", tmp_path / "ready.sock"
    async with (
        engine(slow, loading, healthy=False),
        engine(ready, answering()),
        gateway(tmp_path, table_of(slow, ready)) as node,
    ):
        assert (await node.post({"model": "m"}))[0] == 200
        loads = 'meshd_upstream_errors_total{kind="loading",model="m"}'
        assert await node.metric(loads) == 1


async def test_a_kept_connection_that_went_stale_is_no_failure(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        if call.nth in (2, 3):  # on the kept connection, then once more on a new one: real
            call.reset()
            return
        await call.send(plain("200 OK", b"{}"))

    path = tmp_path / "e.sock"
    async with engine(path, script) as scripted, gateway(tmp_path, table_of(path)) as node:
        assert (await node.post({"model": "m"}))[0] == 200
        # The second comes back on a used connection, is sent again on a fresh one, and that fails.
        assert (await node.post({"model": "m"}))[0] == 503
        assert len(scripted.calls) == 3
        resets = 'meshd_upstream_errors_total{kind="reset",model="m"}'
        assert await node.metric(resets) == 1


async def test_connections_to_an_engine_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as scripted, gateway(tmp_path, table_of(path)) as node:
        for _ in range(5):
            assert (await node.post({"model": "m"}))[0] == 200
        assert len({id(call.writer) for call in scripted.calls}) == 1


async def test_death_within_an_answer_that_is_not_a_stream_is_tried_elsewhere(
    tmp_path: Path,
) -> None:
    async def script(call: Call) -> None:
        await call.send(plain("200 OK", b'{"half": 1}')[:-5])
        call.writer.close()

    path = tmp_path / "e.sock"
    async with engine(path, script), gateway(tmp_path, table_of(path)) as node:
        status, body, _ = await node.post({"model": "m"})
        assert status == 503
        assert _error(body)["code"] == "model_unreachable"
        other = tmp_path / "o.sock"
        async with engine(other, answering()):
            await asyncio.to_thread(write_table, node.routes, table_of(path, other, generation=2))

            async def told() -> bool:
                return await node.metric("meshd_gateway_table_generation") == 2

            await until(told)
            status, body, headers = await node.post({"model": "m"})
            assert (status, headers["X-Mesh-Attempts"]) == (200, "2")
            assert json.loads(body) == {"said": "pong"}


async def test_an_engine_that_never_answers_is_a_504(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, lambda call: call.hung_up()),
        gateway(tmp_path, table_of(path), deadlines=Deadlines(answer=0.2)) as node,
    ):
        status, body, _ = await node.post({"model": "m"})
        assert status == 504
        assert _error(body)["code"] == "engine_timeout"


async def test_a_slow_first_byte_is_waited_for(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await go.wait()
        await call.send(plain("200 OK", b"{}"))

    path = tmp_path / "e.sock"
    async with (
        engine(path, script) as scripted,
        # Shorter than the wait: neither may end it.
        gateway(tmp_path, table_of(path), deadlines=Deadlines(connect=0.1, idle=0.1)) as node,
    ):
        asking = asyncio.create_task(node.post({"model": "m"}))
        await until(lambda: len(scripted.calls) == 1)
        await asyncio.wait([asking], timeout=0.5)
        assert not asking.done()
        go.set()
        assert (await asking)[0] == 200


@pytest.mark.parametrize(
    ("status", "body", "kind", "message", "code"),
    [
        ("500 Internal Server Error", b"boom\n", "text/plain", "boom", None),
        ("400 Bad Request", b"", "text/html", "the engine answered 400", None),
        (
            "400 Bad Request",
            b'{"error":{"code":400,"message":"too long","type":"exceed_context_size_error",'
            b'"n_ctx":1024}}',
            "application/json",
            "too long",
            "context_length_exceeded",
        ),
        ("501 Not Implemented", b'{"error":"no such thing"}', "application/json",
         "no such thing", None),
    ],
)  # fmt: skip
async def test_an_engines_error_arrives_in_openais_shape(
    tmp_path: Path, status: str, body: bytes, kind: str, message: str, code: str | None
) -> None:
    async def script(call: Call) -> None:
        await call.send(plain(status, body, kind))

    path = tmp_path / "e.sock"
    async with engine(path, script), gateway(tmp_path, table_of(path)) as node:
        got, text, heads = await node.post({"model": "m"})
        assert got == int(status.split()[0])
        assert heads["Content-Type"].startswith("application/json")
        error = _error(text)
        assert (error["message"], error["code"]) == (message, code)
        if b"n_ctx" in body:
            assert error["n_ctx"] == 1024


async def test_requests_spread_over_the_engines(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(call: Call) -> None:
        await go.wait()
        await call.send(plain("200 OK", b"{}"))

    one, two = tmp_path / "1.sock", tmp_path / "2.sock"
    async with (
        engine(one, script) as first,
        engine(two, script) as second,
        gateway(tmp_path, table_of(one, two)) as node,
    ):
        asking = [asyncio.create_task(node.post({"model": "m"}, CHAT)) for _ in range(10)]
        await until(lambda: len(first.calls) + len(second.calls) == 10)
        assert len(first.calls) == len(second.calls) == 5
        go.set()
        assert {status for status, _, _ in await asyncio.gather(*asking)} == {200}
