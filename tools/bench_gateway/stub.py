"""The upstream: an engine that has its answer ready, on TCP and on a Unix socket.

``python -m tools.bench_gateway.stub --port PORT [--socket PATH]`` says that it is ready as a child
of llama-server's router does, so that it can be one; such a child gets options of llama-server,
which it leaves aside.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import time
from pathlib import Path
from typing import cast

import httptools
import uvloop

from tools.bench_gateway.asked import MODEL

_ANSWER_BYTES = 1024
_BACKLOG = 4096

_STREAM = re.compile(rb'"stream"\s*:\s*true')
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_INTERVAL = re.compile(rb'"seed"\s*:\s*(\d+)')

_SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


def _answer(document: object) -> bytes:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def _completion() -> bytes:
    """As llama-server's, filled up to 1 kB."""

    def document(text: str) -> dict[str, object]:
        return {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120},
        }

    bare = len(json.dumps(document("")))
    return _answer(document("a" * (_ANSWER_BYTES - bare)))


_COMPLETION = _completion()
# What routers ask before they send anything: OpenAI's list, SGLang's and llama-server's own.
_INFO = {
    b"/health": _answer({"status": "ok"}),
    b"/v1/models": _answer(
        {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}
    ),
    b"/get_model_info": _answer({"model_path": MODEL, "is_generation": True}),
    b"/model_info": _answer({"model_path": MODEL, "is_generation": True}),
    b"/get_server_info": _answer({"model_path": MODEL, "served_model_name": MODEL}),
    b"/server_info": _answer({"model_path": MODEL, "served_model_name": MODEL}),
    b"/props": _answer({"model_alias": MODEL, "total_slots": 4}),
}
# llama-server's router asks so before a large body, and waits a second where it is not told.
_EXPECTS = b"\r\nExpect: 100-continue\r\n"
_GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
_HEAD_BYTES = 4096
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"

_EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"bench","choices":[{"index":0,"delta":{%s"content":"t%d "},"finish_reason":null}]}'
    b"\n\n"
)


def _event(first: bool) -> bytes:
    """With CLOCK_MONOTONIC in nanoseconds: the machine's, so the client's as well."""
    text = _EVENT % (b'"role":"assistant",' if first else b"", time.monotonic_ns())
    return b"%x\r\n%s\r\n" % (len(text), text)


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._body: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of asyncio's class.
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpRequestParser(self)

    def connection_lost(self, _: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        if _EXPECTS in data[:_HEAD_BYTES]:
            self._transport.write(_GO_ON)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    def on_message_begin(self) -> None:
        self._url, self._body = b"", []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            self._transport.write(_INFO.get(self._url.partition(b"?")[0], _NOT_FOUND))
            return
        body = b"".join(self._body)
        if not _STREAM.search(body):
            self._transport.write(_COMPLETION)
            return
        tokens, interval = _TOKENS.search(body), _INTERVAL.search(body)
        self._left = int(tokens[1]) if tokens else 1
        self._interval_s = int(interval[1]) / 1000 if interval else 0.0
        self._due_s = time.monotonic()
        self._transport.write(_SSE_HEAD + _event(first=True))
        self._after()

    def _next(self) -> None:
        self._timer = None
        self._transport.write(_event(first=False))
        self._after()

    def _after(self) -> None:
        self._left -= 1
        if self._left <= 0:
            self._transport.write(_END)
            return
        self._due_s += self._interval_s
        pause_s = max(0.0, self._due_s - time.monotonic())
        self._timer = self._loop.call_later(pause_s, self._next)


# What llama-server b11669 writes for its router, less what describes the model.
_READY = "cmd_child_to_router:state:" + json.dumps(
    {"state": "ready", "payload": {"id": MODEL, "object": "model", "meta": {"n_ctx": 1 << 20}}}
)


async def _serve(port: int, socket: Path | None) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_server(_Connection, "127.0.0.1", port, backlog=_BACKLOG)
    if socket is not None:
        await loop.create_unix_server(_Connection, str(socket), backlog=_BACKLOG)
    print(_READY, flush=True)
    # Pauses of the collector would be taken for the proxy's.
    gc.freeze()
    gc.disable()
    await loop.create_future()


if __name__ == "__main__":
    _parser = argparse.ArgumentParser(prog="stub", description=__doc__)
    _parser.add_argument("--port", type=int, required=True)
    _parser.add_argument("--socket", type=Path)
    _chosen, _ = _parser.parse_known_args()
    uvloop.run(_serve(_chosen.port, _chosen.socket))
