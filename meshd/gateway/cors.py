"""Web pages as clients: which origins may call, and what their browsers are told.

https://fetch.spec.whatwg.org/#http-cors-protocol; private network access:
https://wicg.github.io/private-network-access/
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from meshd.gateway.gate import loopback
from meshd.host_check import bare_host

_MAX_AGE_S = 600
_TOKENS = re.compile(r"[A-Za-z0-9_!#$%&'*+.^`|~, -]{1,2048}", re.ASCII)
_EXPOSED = (
    "Retry-After, X-Mesh-Node, X-Request-Id, "
    "X-RateLimit-Limit-Requests, X-RateLimit-Remaining-Requests, X-RateLimit-Reset-Requests, "
    "X-RateLimit-Limit-Tokens, X-RateLimit-Remaining-Tokens, X-RateLimit-Reset-Tokens"
)


def allowed(origin: str, origins: Collection[str]) -> bool:
    return "*" in origins or origin in origins


def stranger(origin: str, host: str, origins: Collection[str]) -> bool:
    """Whether a request is made by a web page that nobody allowed.

    A page may send some requests unasked and only not read the answer; a prompt costs as much
    then. Pages of this machine, of the host that is asked itself, and programs that show pages of
    their own (``app://``, ``vscode-webview://``) are no strangers.

    :param origin: the request's Origin header. :param host: its Host header.
    """
    if allowed(origin, origins):
        return False
    if not origin.startswith(("http://", "https://")):
        return origin == "null"  # which any page can make itself, with a sandboxed frame
    try:
        page = (urlsplit(origin).hostname or "").rstrip(".")
    except ValueError:
        return True
    near = page == "localhost" or page.endswith(".localhost") or loopback(page)
    return not near and page != bare_host(host)


def told(origin: str, origins: Collection[str]) -> dict[str, str]:
    """The headers of an answer. :param origin: "" where the request had none."""
    if not origins:
        return {}
    if "*" in origins:
        return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
    vary = {"Vary": "Origin"}
    if not origin or origin not in origins:
        return vary
    return {
        **vary,
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": _EXPOSED,
    }


def preflight(asked: Mapping[str, str], origins: Collection[str]) -> dict[str, str]:
    """The headers that answer a browser's question before the request, empty for a refusal.

    :param asked: the question's headers.
    """
    origin = asked.get("Origin", "")
    if not allowed(origin, origins):
        return {}
    answer = told(origin, origins)
    answer.pop("Access-Control-Expose-Headers", None)
    answer["Vary"] = "Origin, Access-Control-Request-Headers"
    answer["Access-Control-Allow-Methods"] = "GET, POST, OPTIONS"
    answer["Access-Control-Max-Age"] = str(_MAX_AGE_S)
    names = asked.get("Access-Control-Request-Headers", "")
    if _TOKENS.fullmatch(names):
        # SDKs for browsers send a dozen headers of their own, which do no harm.
        answer["Access-Control-Allow-Headers"] = names
    if asked.get("Access-Control-Request-Private-Network") == "true":
        answer["Access-Control-Allow-Private-Network"] = "true"
    return answer


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    return method == "OPTIONS" and "Access-Control-Request-Method" in headers
