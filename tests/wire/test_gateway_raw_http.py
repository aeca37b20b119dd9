"""What is no HTTP, or HTTP that two readers may read differently, byte for byte on a socket.

Whatever comes, the gateway answers in shape or hangs up, soon, reads no request into another's
body, sends its engine none but whole ones, and serves the next client.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from meshd.gateway import client_connection
from meshd.gateway.upstreams import Deadlines
from tests.wire.elsewhere import port_of
from tests.wire.gateway_harness import (
    CHAT,
    Running,
    ScriptedEngine,
    answering,
    engine,
    gateway,
    table_of,
)

LONG_S = 30
BODY = b'{"model":"m"}'
LENGTH = b"Content-Length: 13"
CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b"d\r\n" + BODY + b"\r\n0\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"


def post(*lines: bytes, body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    """Lines are headers; what comes after the body is a second request, `HIDDEN`."""
    start = b"POST " + CHAT.encode() + b" HTTP/" + version
    return b"\r\n".join((start, b"Host: localhost", *lines, b"", body)) + HIDDEN


def chunks(size: bytes, after: bytes = b"\r\n0\r\n\r\n") -> bytes:
    return post(CHUNKED, body=size + BODY + after)


def get(path: bytes, *lines: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    return b"\r\n".join((b"GET " + path + b" " + version, b"Host: localhost", *lines, b"", b""))


@dataclass(frozen=True)
class Heard:
    """One answer. :ivar last: it says that nothing follows it."""

    status: int
    last: bool
    headers: dict[str, str]
    body: bytes

    def in_shape(self) -> bool:
        if self.status < 400:
            return True
        error = json.loads(self.body)["error"]
        return self.status < 500 and {"message", "type", "code"} <= set(error)


def heard(data: bytes) -> list[Heard]:
    """Answers to requests other than HEAD. :raises AssertionError: they are not whole."""
    found = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        start, *lines = head.decode("latin-1").split("\r\n")
        status = int(start.split()[1])
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        size = int(headers.get("content-length", "0"))
        assert status == 100 or "content-length" in headers, start
        assert len(data) >= size, "an answer is not whole"
        last = headers.get("connection") == "close" or start.startswith("HTTP/1.0")
        found.append(Heard(status, last, headers, data[:size]))
        data = data[size:]
    return found


async def say(node: Running, data: bytes) -> bytes:
    """All that is answered until the gateway hangs up; it has to."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(node), limit=1 << 20)
    try:
        got = b""
        with suppress(ConnectionError):
            writer.write(data)
            async with asyncio.timeout(LONG_S):
                while piece := await reader.read(1 << 16):
                    got += piece
        return got
    finally:
        writer.transport.abort()


@asynccontextmanager
async def impatient(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Running, ScriptedEngine]]:
    """A gateway that waits for no client; and that is well afterwards."""
    monkeypatch.setattr(client_connection, "HEAD_S", 0.3)
    monkeypatch.setattr(client_connection, "IDLE_S", 2.5)  # more than the second between two looks
    path, deadlines = folder / "e.sock", Deadlines(client_body=0.3)
    async with (
        engine(path, answering()) as scripted,
        gateway(folder, table_of(path, slots=1000), deadlines=deadlines) as node,
    ):
        yield node, scripted
        assert (await node.post({"model": "m"}))[0] == 200
        assert await node.metric('meshd_num_requests_running{model="m",place="here"}') == 0
        for call in scripted.calls:
            assert json.loads(call.body, parse_int=float)["model"] == "m"
            assert call.head.startswith(f"POST {CHAT} ")


def nothing_failed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    """Neither our log nor aiohttp's has an exception that nobody expected."""
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not [record for record in caplog.records if record.exc_info]


REFUSED = {
    "both lengths": post(LENGTH, CHUNKED, body=IN_CHUNKS),
    "both, the other way": post(CHUNKED, LENGTH, body=IN_CHUNKS),
    "identity and a length": post(b"Transfer-Encoding: identity", LENGTH),
    "not quite chunked": post(b"Transfer-Encoding: xchunked", body=IN_CHUNKS),
    "quoted": post(b'Transfer-Encoding: "chunked"', body=IN_CHUNKS),
    "chunked is not last": post(b"Transfer-Encoding: chunked, identity", body=IN_CHUNKS),
    "chunked twice": post(CHUNKED, CHUNKED, body=IN_CHUNKS),
    "chunked and identity": post(CHUNKED, b"Transfer-Encoding: identity", body=IN_CHUNKS),
    "a space before the colon": post(b"Transfer-Encoding : chunked", body=IN_CHUNKS),
    "a vertical tab": post(b"Transfer-Encoding:\x0bchunked", body=IN_CHUNKS),
    "folded": post(b"Transfer-Encoding:\r\n chunked", body=IN_CHUNKS),
    "chunks in HTTP/1.0": post(CHUNKED, body=IN_CHUNKS, version=b"1.0"),
    "two lengths": post(LENGTH, b"Content-Length: 3"),
    "two equal lengths": post(LENGTH, LENGTH),
    "a list of lengths": post(b"Content-Length: 13, 13"),
    "a length with a sign": post(b"Content-Length: +13"),
    "a length below 0": post(b"Content-Length: -13"),
    "a hexadecimal length": post(b"Content-Length: 0xd"),
    "a length as Python writes it": post(b"Content-Length: 1_3"),
    "a length with a space": post(b"Content-Length: 1 3"),
    "no length": post(b"Content-Length: "),
    "a length in other digits": post("Content-Length: 1\u0663".encode()),
    "a length of 77 bits": post(b"Content-Length: 99999999999999999999999"),
    "bare line feeds": post(LENGTH).replace(b"\r\n", b"\n"),
    "one bare line feed": post(b"X-A: b\n" + CHUNKED, LENGTH),
    "a bare carriage return": post(b"X-A: b\r" + CHUNKED, LENGTH),
    "a NUL": post(b"X-A: b\0c", LENGTH),
    "a space in a name": post(b"X A: b", LENGTH),
    "a name that is not ASCII": post("\u00e9: b".encode(), LENGTH),
    "no name": post(b": b", LENGTH),
    "no colon": post(b"XA", LENGTH),
    "a space before the first header": post(b" X: b", LENGTH).replace(
        b"Host: localhost\r\n", b"", 1
    ),
    "two hosts": post(b"Host: other", LENGTH),
    "a chunk's size with a sign": chunks(b"+d\r\n"),
    "a chunk's size below 0": chunks(b"-d\r\n"),
    "a chunk's size with 0x": chunks(b"0xd\r\n"),
    "a chunk's size as Python writes it": chunks(b"0_d\r\n"),
    "a space before a chunk's size": chunks(b" d\r\n"),
    "a space after it": chunks(b"d \r\n"),
    "no chunk's size": chunks(b"\r\n"),
    "a chunk's size that wraps around": chunks(b"1000000000000000d\r\n"),
    "a chunk's extension that ends early": chunks(b"d;a\n"),
    "chunks with bare line feeds": chunks(b"d\n", b"\n0\n\n"),
    "a chunk that is too long": chunks(b"c\r\n"),
    "a chunk without its end": chunks(b"d\r\n", b"0\r\n\r\n"),
    "a length after the body": chunks(b"d\r\n", b"\r\n0\r\nContent-Length: 3\r\n\r\n"),
    "trailers without end": chunks(b"d\r\n", b"\r\n0\r\n" + b"A: b\r\n" * 20_000 + b"\r\n"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": get(b"/healthz", version=b"HTTP/1.2"),
    "HTTP/9.9": get(b"/healthz", version=b"HTTP/9.9"),
    "HTTP/11": get(b"/healthz", version=b"HTTP/11"),
    "tabs in the first line": b"GET\t/healthz\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path without a slash": get(b"healthz"),
    "a path that is not ASCII": get(b"/\xff\xfe\xc3("),
    "no such port": get(b"http://localhost:99999999/"),
    "half an address": get(b"http://[::1/"),
    "a method in small letters": get(b"/healthz").replace(b"GET", b"get"),
    "a method of 500 letters": get(b"/healthz").replace(b"GET", b"A" * 500),
    "only zeros": b"\0" * 1000,
    "a TLS handshake": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "an unknown encoding": post(b"Content-Encoding: br", LENGTH),
    "not in its encoding": post(b"Content-Encoding: gzip", LENGTH),
    "nor in this one": post(b"Content-Encoding: deflate", LENGTH),
}


async def test_what_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with impatient(tmp_path, monkeypatch) as (node, scripted):
        answers = await asyncio.gather(*(say(node, data) for data in REFUSED.values()))
        for name, data in zip(REFUSED, answers, strict=True):
            (answer,) = heard(data)
            assert answer.status in (400, 415, 431), name
            assert answer.in_shape(), name
            assert answer.last, name
            assert answer.headers["x-request-id"], name
        assert not scripted.calls
    nothing_failed(capfd, caplog)


ODD = {
    "as usual": (post(LENGTH), [200, 404]),
    "in chunks": (post(CHUNKED, body=IN_CHUNKS), [200, 404]),
    "in large letters": (post(CHUNKED.upper(), body=IN_CHUNKS), [200, 404]),
    "a tab": (post(b"Transfer-Encoding:\tchunked", body=IN_CHUNKS), [200, 404]),
    "a chunk's extension": (chunks(b"d;a=b\r\n"), [200, 404]),
    "a chunk's extension of 100 kB": (chunks(b"d;" + b"a" * 100_000 + b"\r\n"), [200, 404]),
    "a chunk's size with 2000 zeros": (chunks(b"0" * 2000 + b"d\r\n"), [200, 404]),
    "headers that are not UTF-8": (
        post(
            b"Accept: \xff", b"Authorization: Bearer \xff", b"Content-Type: \xff;charset=\xff",
            b"Cookie: \xff=;;\"", b"Traceparent: \xff", b"Tracestate: \xc3(", b"X-Api-Key: \xff",
            b"X-Request-Id: \xff", b"X-Session-Id: \xff\xc3(", b"anthropic-version: \xff", LENGTH,
        ),
        [200, 404],
    ),
    "times that are none": (
        post(b"X-Request-Timeout: nan", b"X-Stainless-Timeout: -1e999", LENGTH), [200, 404]
    ),
    "a body that is not UTF-8": (
        post(b"Content-Length: 17", body=b'{"model":"\xff\xc3("}  '), [400, 404]
    ),
    "a byte order mark": (post(b"Content-Length: 16", body=b"\xef\xbb\xbf" + BODY), [400, 404]),
    "half a surrogate": (post(b"Content-Length: 18", body=b'{"model":"\\udc00"}'), [400, 404]),
    "nested deeply": (
        post(b"Content-Length: 200013", body=b'{"model":"m",' + b"[" * 200_000), [400, 404]
    ),
    "keys nested deeply": (
        post(b"Content-Length: 500000", body=b'{"a":' * 100_000), [400, 404]
    ),
    "a number of 100 kB": (
        post(b"Content-Length: 100018", body=b'{"model":"m","x":' + b"9" * 100_000 + b"}"),
        [200, 404],
    ),
    "chunks after GET": (
        post(CHUNKED, body=IN_CHUNKS).replace(b"POST", b"GET", 1), [405, 404]
    ),
    "a body after GET": (get(b"/healthz", LENGTH) + BODY + HIDDEN, [200, 404]),
    "Expect": (post(b"Expect: 100-continue", LENGTH), [100, 200, 404]),
    "an upgrade": (
        post(b"Connection: Upgrade", b"Upgrade: websocket", LENGTH), [200, 404]
    ),
    "empty lines before": (b"\r\n" * 5 + post(LENGTH), [200, 404]),
    "nothing but empty lines": (b"\r\n" * 50_000, [408]),
    "half a first line": (b"POST /v1/chat/comple", [408]),
    "half a head": (post(LENGTH)[:60], [408]),
    "half a body": (post(b"Content-Length: 500"), [408]),
    "half a chunk": (post(CHUNKED, body=b"fffff\r\n{"), [408]),
    "CONNECT": (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN, [404, 404]),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n" + HIDDEN, [404, 404]),
    "an absolute path": (get(b"http://localhost/healthz") + HIDDEN, [200, 404]),
    "a path that is no URL": (get(b"//[x/%zz%00%ff/../..") + HIDDEN, [404, 404]),
    "a model that is not UTF-8": (get(b"/v1/models/%ff%fe") + HIDDEN, [404, 404]),
    "a host that is not UTF-8": (get(b"/healthz").replace(b"localhost", b"\xff"), [421]),
    "an origin that is no URL": (get(b"/healthz", b"Origin: http://["), [403]),
    "what a scraper takes": (get(b"/metrics", b"Accept: ;;q=\xff,*/*;q=x"), [200]),
    "a range": (get(b"/openapi.json", b"Range: bytes=5-1", b"If-None-Match: \xff"), [200]),
    "300 requests in one piece": (HEALTH * 300, [200] * 300),
    "answers in their order": (
        (post(LENGTH)[: -len(HIDDEN)] + HEALTH + HIDDEN) * 20, [200, 200, 404] * 20
    ),
    # aiohttp forgets what came in one piece with it.
    "nonsense after a request": (HEALTH + b"NONSENSE\r\n\r\n" + HEALTH, [400]),
}  # fmt: skip


async def test_what_is_odd_is_answered_and_what_follows_it_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with impatient(tmp_path, monkeypatch) as (node, _):
        answers = await asyncio.gather(*(say(node, data) for data, _ in ODD.values()))
        for (name, (_, statuses)), data in zip(ODD.items(), answers, strict=True):
            found = heard(data)
            assert [one.status for one in found] == statuses, name
            assert all(one.in_shape() for one in found), name
    nothing_failed(capfd, caplog)


TOKENS = (
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b",", b";", b"%", b"\xff", b"\xc3(", b"0",
    b"-1", b"HTTP/1.0", b"Connection: close\r\n", b"Content-Length: 5\r\n", CHUNKED + b"\r\n",
    b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"Upgrade: x\r\n", b"{", b"[", b'"',
    b"ffffffffffffffff", b"x" * 9000, b"A: b\r\n" * 200, HEALTH, IN_CHUNKS,
)  # fmt: skip
SEEDS = (
    post(LENGTH),
    post(CHUNKED, body=IN_CHUNKS),
    get(b"/v1/models/m", b"anthropic-version: 1") + HEALTH,
    HEALTH * 3,
)


def mutants(count: int, seed: int) -> Iterable[bytes]:
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(draw.choice(SEEDS))
        for _ in range(draw.randint(1, 4)):
            start = draw.randrange(len(data) + 1)
            end = min(len(data), start + draw.choice((0, 0, 1, 3, 20)))
            data[start:end] = draw.choice(TOKENS)
        yield bytes(data)


async def test_whatever_is_said_is_answered_in_shape_or_not_at_all(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = [*mutants(600, seed=4)]
    statuses = set()
    async with impatient(tmp_path, monkeypatch) as (node, _):
        for start in range(0, len(said), 200):
            batch = said[start : start + 200]
            answers = await asyncio.gather(*(say(node, data) for data in batch))
            for data, answer in zip(batch, answers, strict=True):
                for one in heard(answer):
                    statuses.add(one.status)
                    assert one.in_shape(), (data, one)
    assert statuses >= {200, 400, 404, 421, 431}
    nothing_failed(capfd, caplog)
