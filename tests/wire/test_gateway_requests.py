"""What the gateway accepts, refuses and passes on, over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshd.gateway.routes import Front, ModelState, Route, RoutingTable, Target
from meshd.gateway.upstreams import Deadlines
from tests.wire.gateway_harness import (
    CHAT,
    Call,
    Running,
    answering,
    engine,
    gateway,
    plain,
    table_of,
)

MIB = 1024 * 1024


async def _sizes(call: Call) -> None:
    await call.send(plain("200 OK", str(len(call.body)).encode()))


def _body_of(size: int) -> bytes:
    head, tail = b'{"model":"m","messages":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


async def _send(node: Running, body: object, **more: object) -> tuple[int, bytes]:
    async with node.http.post(node.base + CHAT, data=body, **more) as answer:  # type: ignore[arg-type]
        return answer.status, await answer.read()


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 256 * 1024):
        yield body[start : start + 256 * 1024]


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_of_64_mib_passes_and_one_more_byte_does_not(
    tmp_path: Path, chunked: bool
) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, _sizes) as scripted, gateway(tmp_path, table_of(path)) as node:
        for size, expected in ((64 * MIB, 200), (64 * MIB + 1, 413), (65 * MIB, 413)):
            body = _body_of(size)
            heads = {} if chunked else {"Content-Length": str(size)}
            status, text = await _send(node, _pieces(body), headers=heads)
            assert status == expected
            if status == 200:
                assert text == str(size).encode()
                assert scripted.calls[-1].body == body
            else:
                assert json.loads(text)["error"]["code"] == "request_too_large"
            scripted.calls.clear()
        assert (await node.post({"model": "m"}))[0] == 200


async def test_the_limit_is_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with (
        engine(path, _sizes),
        gateway(tmp_path, table_of(path, max_body_bytes=1000)) as node,
    ):
        assert (await _send(node, _body_of(1000)))[0] == 200
        assert (await _send(node, _body_of(1001)))[0] == 413


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        (b"", None, "invalid_json"),
        (b"{", None, "invalid_json"),
        (b"[1]", None, "invalid_json"),
        (b"\xff\xfe{\x00}\x00", None, "invalid_json"),
        (b'{"x":' + b"[" * 1_000_000, None, "invalid_json"),
        (b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "invalid_json"),
        (b"{}", "model", "missing_required_parameter"),
        (b'{"model":null}', "model", "missing_required_parameter"),
        (b'{"model":["m"]}', "model", "invalid_type"),
        (b'{"model":"m"} trailing', None, "invalid_json"),
    ],
)
async def test_a_bad_body_is_a_400_and_reaches_no_engine(
    tmp_path: Path, body: bytes, param: str | None, code: str
) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as scripted, gateway(tmp_path, table_of(path)) as node:
        status, text = await _send(node, body)
        error = json.loads(text)["error"]
        assert (status, error["param"], error["code"]) == (400, param, code)
        assert error["type"] == "invalid_request_error"
        assert not scripted.calls


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
async def test_a_wrong_content_type_is_mended(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, _sizes) as scripted, gateway(tmp_path, table_of(path)) as node:
        status, _ = await _send(node, b'{"model":"m"}', headers={"Content-Type": kind})
        assert status == 200
        assert "content-type: application/json\r\n" in scripted.calls[0].head.lower()


async def test_a_compressed_body_is_unpacked_for_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, _sizes) as scripted, gateway(tmp_path, table_of(path)) as node:
        heads = {"Content-Encoding": "gzip"}
        assert (await _send(node, gzip.compress(_body_of(5000)), headers=heads))[0] == 200
        assert scripted.calls[0].body == _body_of(5000)
        assert "content-encoding" not in scripted.calls[0].head.lower()
        bomb = gzip.compress(_body_of(65 * MIB))
        assert len(bomb) < MIB
        assert (await _send(node, bomb, headers=heads))[0] == 413
        assert (await _send(node, b"not gzip", headers=heads))[0] == 400


async def test_bodies_pass_unchanged_but_for_an_aliass_name(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as scripted, gateway(tmp_path, table_of(path)) as node:
        odd = b'{ "temperature":1.50e0,\n"model" : "m", "x":"\\u00e9\xc3\xa9"}'
        assert (await _send(node, odd))[0] == 200
        assert scripted.calls[0].body == odd
        assert (await _send(node, odd.replace(b'"m"', b'"nick"')))[0] == 200
        expected = b'{"temperature":1.50e0,"model":"m","x":"\\u00e9\xc3\xa9"}'
        assert scripted.calls[1].body == expected


async def test_nothing_about_the_connection_or_the_client_passes(tmp_path: Path) -> None:
    async def script(call: Call) -> None:
        extra = (
            "Connection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nServer: odd\r\n"
            "Access-Control-Allow-Origin: *\r\nSet-Cookie: a=b\r\nX-Kept: yes\r\n"
        )
        await call.send(plain("200 OK", b"{}", extra=extra))

    path = tmp_path / "e.sock"
    async with engine(path, script) as scripted, gateway(tmp_path, table_of(path)) as node:
        heads = {
            "Authorization": "Bearer secret",
            "Cookie": "a=b",
            "Origin": "http://localhost:3000",
            "X-Request-Id": "mine-1",
            "Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        }
        async with node.http.post(node.base + CHAT, json={"model": "m"}, headers=heads) as answer:
            got = {name.lower() for name in answer.headers}
            assert answer.headers["X-Kept"] == "yes"
            assert answer.headers["X-Request-Id"] == "mine-1"
            assert answer.headers["Server"].startswith("meshd/")
        gone = {"x-hop", "keep-alive", "set-cookie", "access-control-allow-origin"}
        assert not gone & got
        sent = scripted.calls[0].head.lower()
        assert "x-request-id: mine-1\r\n" in sent
        assert "traceparent: 00-0af7" in sent
        for name in ("authorization", "cookie", "origin", "secret"):
            assert name not in sent


async def test_a_request_id_that_would_forge_a_log_line_is_replaced(tmp_path: Path) -> None:
    async with gateway(tmp_path, table_of(tmp_path / "e.sock")) as node:
        heads = {"X-Request-Id": "a b\tc" * 50}
        async with node.http.get(node.base + "/healthz", headers=heads) as answer:
            assert answer.headers["X-Request-Id"].startswith("req-")


async def test_the_models_and_their_states(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    table = RoutingTable(
        routes=(
            Route("org/a", ModelState.READY, (Target("local", str(path), True, 1),), ("alias",)),
            Route("b", ModelState.LOADING, detail="40 % read"),
            Route("c", ModelState.WAITING, detail="needs 20 GiB, 8 GiB are free"),
            Route("d", ModelState.FAILED),
        ),
        front=Front(wait_s=0),
    )
    async with engine(path, answering()), gateway(tmp_path, table) as node:
        async with node.http.get(node.base + "/v1/models") as answer:
            listed = await answer.json()
        assert [model["id"] for model in listed["data"]] == ["org/a", "b", "c", "d"]
        assert listed["data"][1]["mesh"]["state"] == "loading"
        for name in ("org/a", "org%2Fa", "alias"):
            async with node.http.get(f"{node.base}/v1/models/{name}") as answer:
                assert (await answer.json())["id"] == "org/a"
        for name, code in (("b", "loading"), ("c", "waiting"), ("d", "failed")):
            status, body, heads = await node.post({"model": name})
            assert status == 503
            assert json.loads(body)["error"]["code"] == f"model_{code}"
            assert int(heads["Retry-After"]) > 0
        assert "needs 20 GiB" in (await node.post({"model": "c"}))[1].decode()
        status, body, _ = await node.post({"model": "nope"})
        error = json.loads(body)["error"]
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "b, c, d, org/a" in error["message"]
        assert (await node.post({"model": "z" * 100_000}))[1].__len__() < 1000
        unknown = f'meshd_gateway_requests_total{{code="404",endpoint="{CHAT}",model="unknown"}}'
        assert await node.metric(unknown) == 2


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/nope", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("OPTIONS", CHAT, 405),
        ("GET", "/v1/models/nope", 404),
    ],
)
async def test_wrong_paths_and_methods_are_told_in_json(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock")) as node,
        node.http.request(method, node.base + path) as answer,
    ):
        assert answer.status == status
        assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}
        assert ("Allow" in answer.headers) is (status == 405)
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]


async def test_a_client_that_stops_within_its_body_is_not_waited_for(tmp_path: Path) -> None:
    deadlines = Deadlines(client_body=0.2)
    async with gateway(tmp_path, table_of(tmp_path / "e.sock"), deadlines=deadlines) as node:
        host, port = node.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{{".encode()
        )
        assert (await asyncio.wait_for(reader.readline(), 5)).split()[1] == b"408"
        writer.close()


async def test_an_http_1_0_client_gets_a_stream_that_ends_with_the_connection(
    tmp_path: Path,
) -> None:
    from tests.wire.gateway_harness import DONE, event, streaming

    path = tmp_path / "e.sock"
    async with (
        engine(path, streaming([event("x"), DONE])),
        gateway(tmp_path, table_of(path)) as node,
    ):
        host, port = node.base.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        body = b'{"model":"m"}'
        writer.write(f"POST {CHAT} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.endswith(b"\r\n\r\n" + event("x") + DONE)
        writer.close()
