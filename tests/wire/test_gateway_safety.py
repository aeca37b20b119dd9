"""Clients that mean no good, and pages that come under a name of their own, on real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from meshd.gateway import client_connection
from meshd.gateway.crowd import CrowdLimits
from meshd.gateway.routes import Front
from meshd.gateway.upstreams import Deadlines
from meshd.keys.quota import Quota
from tests.wire.elsewhere import Pair, exchange, port_of
from tests.wire.gateway_harness import (
    CHAT,
    Call,
    Running,
    answering,
    engine,
    gateway,
    plain,
    table_of,
    until,
)
from tests.wire.keyed import Keys, bearer

MODELS = "/v1/models"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@asynccontextmanager
async def connection(node: Running) -> AsyncIterator[Pair]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(node))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def dribble(pair: Pair, text: bytes, pause_s: float) -> None:
    """One byte at a time, until the other end has hung up."""
    reader, writer = pair
    for number in range(len(text)):
        if reader.at_eof():
            return
        writer.write(text[number : number + 1])
        await asyncio.sleep(pause_s)


def parts(answer: bytes) -> tuple[int, dict[str, object]]:
    """Status, and the error."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/json" in head
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return int(head.split()[1]), error


# -- slow, half and too much ----------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", HEALTH], ids=["at once", "after a request"])
async def test_a_head_that_dribbles_in_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(client_connection, "HEAD_S", 0.5)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n" + b"X-A: b\r\n" * 100
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock")) as node,
        connection(node) as (reader, writer),
    ):
        writer.write(first)
        if first:
            assert b"200" in await asyncio.wait_for(reader.readline(), 10)
            await asyncio.wait_for(reader.readuntil(b'{"status":"ok"}'), 10)
        # 50 s of bytes; each alone is soon enough.
        feeding = asyncio.create_task(dribble((reader, writer), head, 0.05))
        async with asyncio.timeout(20):
            status, error = parts(await reader.read())
        assert (status, error["code"]) == (408, "timeout")
        feeding.cancel()


@pytest.mark.parametrize("first", [b"", HEALTH], ids=["at once", "after a request"])
async def test_a_connection_without_requests_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr(client_connection, "IDLE_S", 0.5)
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock")) as node,
        connection(node) as pair,
    ):
        heard = await exchange(pair, first, 20)
        assert heard.startswith(b"HTTP/1.1 200 ") is bool(first)


async def test_a_body_that_dribbles_in_is_not_waited_for(tmp_path: Path) -> None:
    deadlines = Deadlines(client_body=0.5)
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock"), deadlines=deadlines) as node,
        connection(node) as (reader, writer),
    ):
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        writer.write(head.encode())
        feeding = asyncio.create_task(dribble((reader, writer), b"{" + b" " * 999, 0.05))
        async with asyncio.timeout(20):
            answer = await reader.readuntil(b"}}")
        assert parts(answer) == (
            408,
            {
                "message": "The request body did not arrive in time.",
                "type": "invalid_request_error",
                "param": None,
                "code": "timeout",
            },
        )
        feeding.cancel()


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        (
            b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + b"x" * 9000 + b"\r\n\r\n",
            431,
            "headers_too_large",
        ),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
            431,
            "headers_too_large",
        ),
        (b"NONSENSE\r\n\r\n", 400, "invalid_http"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", 400, "invalid_http"),
        (
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "invalid_http",
        ),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n", 400, "invalid_http"),
    ],
    ids=["line", "header", "headers", "nonsense", "length", "smuggling", "TLS"],
)
async def test_what_is_too_large_or_no_http_is_refused_in_shape(
    tmp_path: Path, request_: bytes, status: int, code: str
) -> None:
    async with gateway(tmp_path, table_of(tmp_path / "e.sock")) as node:
        async with connection(node) as pair:
            got, error = parts(await exchange(pair, request_))
            assert (got, error["code"]) == (status, code)
            assert "xxx" not in str(error["message"])
        async with connection(node) as (reader, writer):
            writer.write(HEALTH)
            assert b"200" in await asyncio.wait_for(reader.readline(), 10)


async def test_there_is_an_end_to_connections(tmp_path: Path) -> None:
    crowd = CrowdLimits(total=3, each=2)
    async with (
        gateway(tmp_path, table_of(tmp_path / "e.sock"), crowd=crowd) as node,
        AsyncExitStack() as stack,
    ):
        held = []
        for _ in range(3):
            reader, writer = await stack.enter_async_context(connection(node))
            writer.write(HEALTH)
            assert b"200" in await asyncio.wait_for(reader.readline(), 10)
            held.append(writer)
        async with connection(node) as pair:
            answer = await exchange(pair, HEALTH)
            assert b"\r\nRetry-After: 1\r\n" in answer
            status, error = parts(answer)
            assert (status, error["code"]) == (503, "gateway_overloaded")
        held[0].close()

        async def room() -> bool:
            async with connection(node) as pair:
                last = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
                return b" 200 OK" in await exchange(pair, last)

        await until(room)


# -- Host and Origin ------------------------------------------------------------------------------


async def ask(
    node: Running, path: str = MODELS, method: str = "GET", **heads: str
) -> tuple[int, dict[str, str], bytes]:
    headers = {name.replace("_", "-"): value for name, value in heads.items()}
    async with node.http.request(method, node.base + path, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.read()


@pytest.mark.parametrize("path", [MODELS, CHAT, "/healthz", "/metrics", "/nothing"])
async def test_a_page_under_a_name_of_its_own_stays_out(tmp_path: Path, path: str) -> None:
    """DNS rebinding: evil.example resolves to 127.0.0.1."""
    socket = tmp_path / "e.sock"
    async with engine(socket, answering()) as scripted, gateway(tmp_path, table_of(socket)) as node:
        for host in ("evil.example", "evil.example:9337", "localhost.evil.example"):
            status, _, body = await ask(node, path, "POST" if path == CHAT else "GET", Host=host)
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (421, "unknown_host")
            assert "gateway.hosts" in error["message"]
        assert not scripted.calls


async def test_own_names_and_addresses_are_let_in(tmp_path: Path) -> None:
    front = Front(hosts=("llm.example",), wait_s=0)
    async with gateway(tmp_path, table_of(tmp_path / "e.sock", front=front)) as node:
        for host in ("localhost:9337", "127.0.0.1", "[::1]:9337", "LLM.example", "192.0.2.1:80"):
            assert (await ask(node, Host=host))[0] == 200


async def test_anthropics_endpoint_refuses_in_its_own_shape(tmp_path: Path) -> None:
    async with gateway(tmp_path, table_of(tmp_path / "e.sock")) as node:
        status, _, body = await ask(node, "/v1/messages", "POST", Host="evil.example")
        said = json.loads(body)
        assert (status, said["type"], said["error"]["code"]) == (421, "error", "unknown_host")


PAGE = "https://chat.example"
PREFLIGHT = {
    "Origin": PAGE,
    "Access_Control_Request_Method": "POST",
    "Access_Control_Request_Headers": "authorization,content-type",
}


def cors_headers(heads: dict[str, str]) -> set[str]:
    return {name for name in heads if name.lower().startswith("access-control")}


async def test_pages_of_others_are_refused_unless_they_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    async with engine(path, answering()) as scripted, gateway(tmp_path, table_of(path)) as node:
        status, heads, body = await ask(node, CHAT, "OPTIONS", **PREFLIGHT)
        assert (status, cors_headers(heads)) == (403, set())
        assert json.loads(body)["error"]["code"] == "origin_not_allowed"
        # What a page may send unasked must not cost anything either.
        status, heads, body = await ask(node, CHAT, "POST", Origin=PAGE, Content_Type="text/plain")
        assert (status, cors_headers(heads)) == (403, set())
        assert "gateway.origins" in json.loads(body)["error"]["message"]
        assert not scripted.calls


async def test_a_named_page_may_read_answers_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "e.sock"
    front = Front(origins=(PAGE,), wait_s=0)
    async with engine(path, answering()), gateway(tmp_path, table_of(path, front=front)) as node:
        status, heads, body = await ask(node, CHAT, "OPTIONS", **PREFLIGHT)
        assert (status, body) == (204, b"")
        assert heads["Access-Control-Allow-Origin"] == PAGE
        assert "authorization" in heads["Access-Control-Allow-Headers"]
        async with node.http.post(
            node.base + CHAT, json={"model": "m"}, headers={"Origin": PAGE}
        ) as answer:
            assert answer.status == 200
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
        status, heads, _ = await ask(node, MODELS + "/none", Origin=PAGE)
        assert (status, heads["Access-Control-Allow-Origin"]) == (404, PAGE)
        for origin in ("https://evil.example", "null"):
            status, heads, _ = await ask(node, CHAT, "OPTIONS", **{**PREFLIGHT, "Origin": origin})
            assert (status, "Access-Control-Allow-Origin" in heads) == (403, False)


# -- keys, as far as this machine goes ------------------------------------------------------------


async def test_keys_have_budgets_and_models(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    poor = keys.add("poor", rate=Quota(2, 3600.0))
    narrow = keys.add("narrow", models=("other*",))
    old = keys.add("old", expires="2020-01-31")
    path = tmp_path / "e.sock"
    async with (
        engine(path, answering()) as scripted,
        gateway(
            tmp_path, table_of(path, front=Front(local_keys=True, wait_s=0)), keys=keys.where
        ) as node,
    ):

        async def post(key: str) -> tuple[int, dict[str, str], bytes]:
            async with node.http.post(
                node.base + CHAT, json={"model": "m"}, headers=bearer(key) if key else {}
            ) as answer:
                return answer.status, dict(answer.headers), await answer.read()

        assert [(await post(poor))[0] for _ in range(2)] == [200, 200]
        status, heads, body = await post(poor)
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 3000 < int(heads["Retry-After"]) <= 3661
        assert heads["X-RateLimit-Remaining-Requests"] == "0"
        assert len(scripted.calls) == 2

        status, _, body = await post(narrow)
        assert (status, json.loads(body)["error"]["code"]) == (403, "model_not_allowed")
        listed = json.loads((await ask(node, Authorization=f"Bearer {narrow}"))[2])
        assert listed["data"] == []

        for key, words in ((old, "has expired"), ("sk-mesh-no", "not known"), ("", "is needed")):
            status, heads, body = await post(key)
            error = json.loads(body)["error"]
            assert (status, error["code"]) == (401, "invalid_api_key")
            assert words in error["message"]
            assert heads["WWW-Authenticate"] == "Bearer"
        assert len(scripted.calls) == 2


async def test_token_budgets_outlive_a_restart(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    one = keys.add("one", tokens=Quota(100, 86400.0))
    path, budgets = tmp_path / "e.sock", tmp_path / "state/token-budgets.json"

    async def script(call: Call) -> None:
        used = b'{"usage":{"prompt_tokens":90,"completion_tokens":30,"total_tokens":120}}'
        await call.send(plain("200 OK", used))

    async with engine(path, script) as scripted:
        for life in range(3):
            async with (
                gateway(tmp_path, table_of(path), keys=keys.where, accounts=budgets) as node,
                node.http.post(
                    node.base + CHAT, json={"model": "m"}, headers=bearer(one)
                ) as answer,
            ):
                assert answer.status == (429 if life else 200)
                assert answer.headers["X-RateLimit-Limit-Tokens"] == "100"
                if life:
                    assert (await answer.json())["error"]["type"] == "tokens"
                    assert int(answer.headers["Retry-After"]) > 86000
        assert len(scripted.calls) == 1
    assert one not in budgets.read_text()


async def test_requests_at_once_are_bounded_and_given_back(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    one = keys.add("one", concurrency=1)
    path, go_on = tmp_path / "e.sock", asyncio.Event()

    async def script(call: Call) -> None:
        await go_on.wait()
        await call.send(plain("200 OK", b"{}"))

    async with (
        engine(path, script) as scripted,
        gateway(tmp_path, table_of(path), keys=keys.where) as node,
    ):

        async def post() -> tuple[int, str | None]:
            async with node.http.post(
                node.base + CHAT, json={"model": "m"}, headers=bearer(one)
            ) as answer:
                await answer.read()
                return answer.status, answer.headers.get("Retry-After")

        first = asyncio.create_task(post())
        await until(lambda: len(scripted.calls) == 1)
        assert await post() == (429, "1")
        first.cancel()  # the client leaves

        async def free() -> bool:
            second = asyncio.create_task(post())
            await asyncio.wait((second,), timeout=0.2)
            if second.done():
                return False
            go_on.set()
            assert await asyncio.wait_for(second, 10) == (200, None)
            return True

        await until(free)


async def test_what_a_proxy_on_this_machine_passes_on_needs_a_key(tmp_path: Path) -> None:
    keys = Keys(tmp_path)
    alice = keys.add("alice")
    async with gateway(tmp_path, table_of(tmp_path / "e.sock"), keys=keys.where) as node:
        assert (await ask(node))[0] == 200
        assert (await ask(node, X_Forwarded_For="192.0.2.9"))[0] == 401
        assert (await ask(node, X_Forwarded_For="192.0.2.9", Authorization=f"Bearer {alice}"))[
            0
        ] == 200
    async with gateway(tmp_path, table_of(tmp_path / "e.sock")) as node:
        status, _, body = await ask(node, X_Forwarded_For="192.0.2.9")
        assert (status, json.loads(body)["error"]["code"]) == (403, "no_api_keys")
