"""A request's head as bytes (RFC 9112, section 3)."""

from __future__ import annotations

from collections.abc import Mapping


def request_head(
    method: str, path: str, host: str, headers: Mapping[str, str], size_bytes: int
) -> bytes:
    """:param size_bytes: of the body, which follows.

    :raises ValueError: a line break or NUL within a value would forge another header.
    """
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {size_bytes}\r\n\r\n")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or "\0" in text:
        raise ValueError("line break in a header")
    # As aiohttp decoded what the client sent.
    return text.encode("utf-8", "surrogateescape")
