"""Answers whose bytes the gateway puts together itself, for clients old and new."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshd.gateway.client_answer import ClientAnswer
from tests.wire.gateway_harness import (
    CHAT,
    CHUNKED_END,
    DEADLINE_S,
    DONE,
    Call,
    Running,
    Script,
    engine,
    event,
    gateway,
    plain,
    streaming,
    table_of,
)

BODY = b'{"model":"m"}'
LARGE = b'{"said":"' + b"x" * 200_000 + b'"}'


async def _asked(place: Running, version: str, *headers: str, times: int = 1) -> bytes:
    """All that comes until the gateway hangs up, or `times` heads and whole answers of LARGE."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(place.base.rpartition(":")[2]))
    lines = [f"POST {CHAT} HTTP/{version}", "Host: localhost", f"Content-Length: {len(BODY)}"]
    try:
        async with asyncio.timeout(DEADLINE_S):
            got = b""
            for _ in range(times):
                writer.write("\r\n".join([*lines, *headers, "", ""]).encode() + BODY)
                if times > 1:
                    got += await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(
                        len(LARGE)
                    )
            if times == 1:
                got = await reader.read(-1)
            return got
    finally:
        writer.close()


async def whole(call: Call) -> None:
    await call.send(plain("200 OK", LARGE, extra="X-Own: yes\r\n"))


stream = streaming([event("a"), event("b"), DONE])


@asynccontextmanager
async def served(folder: Path, script: Script) -> AsyncIterator[Running]:
    path = folder / "m.sock"
    async with engine(path, script), gateway(folder, table_of(path)) as running:
        yield running


@pytest.mark.parametrize(
    ("version", "headers", "said"),
    [
        ("1.0", (), b""),
        ("1.1", ("Connection: close",), b"connection: close"),
    ],
)
async def test_a_whole_answer_and_then_the_end_of_the_connection(
    tmp_path: Path, version: str, headers: tuple[str, ...], said: bytes
) -> None:
    async with served(tmp_path, whole) as place:
        head, _, body = (await _asked(place, version, *headers)).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    lines = head.lower().split(b"\r\n")
    assert body == LARGE
    assert f"content-length: {len(LARGE)}".encode() in lines
    assert b"x-own: yes" in lines
    assert not said or said in lines
    assert any(line.startswith(b"date: ") for line in lines)


async def test_one_connection_serves_answer_after_answer(tmp_path: Path) -> None:
    async with served(tmp_path, whole) as place:
        got = await _asked(place, "1.1", times=3)
    assert got.count(LARGE) == got.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert b"connection:" not in got.lower()


async def test_an_old_client_is_told_to_keep_a_connection_that_it_wants_to_keep(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, whole) as place:
        got = await _asked(place, "1.0", "Connection: keep-alive", times=2)
    assert got.lower().count(b"\r\nconnection: keep-alive\r\n") == 2


async def test_a_stream_to_an_old_client_has_no_chunks_and_ends_with_the_connection(
    tmp_path: Path,
) -> None:
    async with served(tmp_path, stream) as place:
        got = await _asked(place, "1.0", "Connection: keep-alive")
    head, _, body = got.partition(b"\r\n\r\n")
    assert body == event("a") + event("b") + DONE
    assert b"transfer-encoding" not in head.lower()


async def test_what_fails_within_an_answer_is_cut_not_answered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = ClientAnswer.write

    async def broken(self: ClientAnswer, data: bytes) -> None:
        await write(self, data)
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(ClientAnswer, "write", broken)
    async with served(tmp_path, stream) as place:
        try:
            got = await _asked(place, "1.1")
        except ConnectionResetError:
            return  # so it may be seen, too
    assert got.count(b"HTTP/1.1") == 1
    assert not got.endswith(CHUNKED_END)
