"""A message's head as bytes (RFC 9112, sections 2.1 and 3)."""

from __future__ import annotations

from collections.abc import Mapping


def request_head(
    method: str, path: str, host: str, headers: Mapping[str, str], size_bytes: int
) -> bytes:
    """:param size_bytes: of the body, which follows.

    :raises ValueError: a line break or NUL within a value would forge another header.
    """
    return head_bytes(
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {size_bytes}", headers, 2
    )


def head_bytes(start: str, headers: Mapping[str, str], breaks: int = 0) -> bytes:
    """:param start: what goes before the headers. :param breaks: lines that end within it.

    :raises ValueError: a line break or NUL within a value would forge another header.
    """
    fields = [f"\r\n{name}: {value}" for name, value in headers.items()]
    text = f"{start}{''.join(fields)}\r\n\r\n"
    breaks += len(fields) + 2
    if text.count("\n") != breaks or text.count("\r") != breaks or "\0" in text:
        raise ValueError("line break in a header")
    # As aiohttp decoded what the client sent.
    return text.encode("utf-8", "surrogateescape")
