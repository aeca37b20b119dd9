"""A gateway in a thread, for clients that block; and an engine that judges requests by the
document.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from meshd.gateway.openapi.document import document
from tests.wire.gateway_harness import CHUNKED_END, DONE, SSE_HEAD, Call, chunk, event, plain

T = TypeVar("T")
_START_S = 30

_USAGE = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
_OPENAI = {"id": "1", "created": 1, "model": "served-model", "usage": _USAGE}
_RANKED = {"model": "served-model", "results": [{"index": 0, "relevance_score": -1.5}]}
_PONG: Mapping[str, Any] = {
    "/v1/chat/completions": {
        **_OPENAI,
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "pong"},
            }
        ],
    },
    "/v1/completions": {
        **_OPENAI,
        "object": "text_completion",
        "choices": [{"index": 0, "text": "pong", "finish_reason": "stop"}],
    },
    "/v1/embeddings": {
        "object": "list",
        "model": "served-model",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.5]}],
        "usage": _USAGE,
    },
    "/v1/responses": {
        "id": "1",
        "object": "response",
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "pong"}]}],
    },
    "/v1/messages": {
        "id": "1",
        "type": "message",
        "role": "assistant",
        "model": "served-model",
        "content": [{"type": "text", "text": "pong"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 1},
    },
    "/v1/messages/count_tokens": {"input_tokens": 3},
    **dict.fromkeys(("/v1/rerank", "/v1/reranking", "/rerank", "/reranking"), _RANKED),
}


def _named(name: str) -> bytes:
    return f'event: {name}\ndata: {{"type":"{name}"}}\n\n'.encode()


_EVENTS: Mapping[str, bytes] = {
    "/v1/chat/completions": event("pong") + DONE,
    "/v1/completions": event("pong") + DONE,
    "/v1/responses": _named("response.created") + _named("response.completed"),
    "/v1/messages": _named("message_start") + _named("message_stop"),
}


def _judges() -> Mapping[str, Draft202012Validator]:
    whole = document()
    registry: Registry[Any] = Registry().with_resource("urn:document", Resource.opaque(whole))
    return {
        path: Draft202012Validator(
            {"$ref": f"urn:document{_body_of(item['post'])['$ref']}"}, registry=registry
        )
        for path, item in whole["paths"].items()
        if "post" in item
    }


def _body_of(operation: dict[str, Any]) -> dict[str, str]:
    schema: dict[str, str] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


_JUDGES = _judges()


async def judging(call: Call) -> None:
    """An engine that wants what the document describes, and answers so. In llama-server's words."""
    path = call.head.split()[1]
    body = json.loads(call.body)
    fault = next(_JUDGES[path].iter_errors(body), None)
    if fault is not None:
        error = {"code": 400, "message": fault.message, "type": "invalid_request_error"}
        answer = json.dumps({"error": error}).encode()
        await call.send(plain("400 Bad Request", answer))
    elif body.get("stream") is True and path in _EVENTS:
        await call.send(SSE_HEAD + chunk(_EVENTS[path]) + CHUNKED_END)
    else:
        await call.send(plain("200 OK", json.dumps(_PONG[path]).encode()))


@contextmanager
def in_a_thread(context: Callable[[], AbstractAsyncContextManager[T]]) -> Iterator[T]:
    """Enter it on an event loop of its own.

    :raises TimeoutError: it takes too long. Else what the context raises.
    """
    begun: Future[T] = Future()
    over = threading.Event()

    async def work() -> None:
        async with context() as made:
            begun.set_result(made)
            await asyncio.to_thread(over.wait)

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            if begun.done():
                raise
            begun.set_exception(error)

    thread = threading.Thread(target=run, name="gateway", daemon=True)
    thread.start()
    try:
        yield begun.result(_START_S)
    finally:
        over.set()
        thread.join(_START_S)
        assert not thread.is_alive(), "the gateway did not end"
