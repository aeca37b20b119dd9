"""The requests, and how a request tells the stub what to answer.

Only fields that every OpenAI proxy passes on: ``max_tokens`` is the number of tokens to stream,
``seed`` the milliseconds between two of them.
"""

from __future__ import annotations

import json

MODEL = "bench"
PATH = "/v1/chat/completions"

_KEY = "sk-bench"
# With what JSON escapes and what UTF-8 writes in two bytes, as prompts have.
_TEXT = 'The quick brown fox said: "é, a \\ and a\nnew line", and went on to the next hill. '


def plain(size_bytes: int) -> bytes:
    """A whole request whose body has about that many bytes and whose answer has 1 kB."""
    bare = len(_body(""))
    each = len(_body(_TEXT)) - bare
    text = _TEXT * max(1, round((size_bytes - bare) / each))
    return _post(_body(text))


def streaming(tokens: int, interval_ms: int) -> bytes:
    """A whole request for a stream of so many tokens."""
    return _post(_body(_TEXT * 6, stream=True, max_tokens=tokens, seed=interval_ms))


def _body(text: str, **more: object) -> bytes:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text},
    ]
    document = {"model": MODEL, "messages": messages, "temperature": 0.7, **more}
    return json.dumps(document, ensure_ascii=False).encode()


def _post(body: bytes) -> bytes:
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench-gateway\r\n"
        f"Accept: application/json\r\nAuthorization: Bearer {_KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
