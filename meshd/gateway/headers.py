"""Which headers pass through the gateway, and the ones it adds."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from functools import lru_cache

from multidict import CIMultiDict, CIMultiDictProxy

REQUEST_ID = "X-Request-Id"
NODE = "X-Mesh-Node"
MODEL = "X-Mesh-Model"
QUALITY = "X-Mesh-Quality"
"""Of a request: the least that it takes; of an answer: what it is. See `answer_quality`."""
RESUMED = "X-Mesh-Resumed"
"""Whether the answer was made by more than one engine; of a stream a comment says it later."""
ATTEMPTS = "X-Mesh-Attempts"
"""How many engines it took until one answered."""
HOP = "X-Mesh-Hop"
"""On a request that a gateway sends on: it goes no further than to that node's own engines."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}", re.ASCII)

# To an engine goes only what it can use: no keys, no cookies, nothing about the connection.
_TO_ENGINE = ("Accept", "Traceparent", "Tracestate")

# RFC 9110, 7.6.1, and what is ours to say: who serves, when, and to which origins.
_NOT_TO_CLIENT = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "server",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-mesh-attempts",
        "x-mesh-hop",
        "x-mesh-lost",
        "x-mesh-model",
        "x-mesh-node",
        "x-mesh-quality",
        "x-mesh-resumed",
        "x-request-id",
    }
)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's own id where it is fit to be written into logs, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{random.getrandbits(128):032x}"


def to_engine(headers: Mapping[str, str], request_id: str, *, hop: bool = False) -> dict[str, str]:
    """The head of the request as the engine gets it. The body is JSON, whatever the client says.

    :param hop: mark it as sent on by a gateway.
    """
    # An engine's HTTP library would read a form or a multipart body as such.
    head = {
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        REQUEST_ID: request_id,
    }
    for name in _TO_ENGINE:
        if (value := headers.get(name)) is not None and value.isascii():
            head[name] = value
    if hop:
        head[HOP] = "1"
    return head


def to_client(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The head of the answer as the client gets it, less what holds for one connection only."""
    told = CIMultiDict(one for one in headers.items() if _is_for_client(one[0]))
    for value in headers.getall("Connection", ()):
        for name in value.split(","):
            told.popall(name.strip(), None)
    return told


@lru_cache(maxsize=256)
def _is_for_client(name: str) -> bool:
    low = name.lower()
    return low not in _NOT_TO_CLIENT and not low.startswith("access-control-")
