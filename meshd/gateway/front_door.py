"""What every request of a client passes before anything else: Host, Origin, key.

How an application takes it in::

    if (answer := door.preflight(request)) is not None:
        return answer
    exchange.pass_ = door.admit(request)      # raises Refuse
    ...
    door.dress(request, response, exchange.pass_)   # before the head of any answer is sent
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from aiohttp import web

from meshd.gateway import cors
from meshd.gateway.gate import OPEN, Gate, Pass, from_here
from meshd.gateway.intake import Refuse
from meshd.gateway.openai_error import ApiError
from meshd.gateway.openapi import document
from meshd.gateway.routes import Front
from meshd.host_check import HostCheck

ALWAYS_OPEN = frozenset({"/healthz", document.PATH})
"""Paths that need no key. Whoever balances load between nodes has none; and what reads the API's
document, to make a client of it, seldom sends one. Neither says anything of this mesh.
"""


class FrontDoor:
    """Decides by the head of a request alone.

    :ivar troubles: each says what else keeps clients out, "" for nothing.
    """

    def __init__(self, gate: Gate, front: Callable[[], Front], names: Iterable[str] = ()) -> None:
        """:param front: the settings in force. :param names: of this machine."""
        self.gate = gate
        self.troubles: list[Callable[[], str]] = []
        self._front = front
        self._names = frozenset(names)
        self._hosts = HostCheck(self._names)
        self._hosts_of: tuple[str, ...] = ()

    @property
    def settings(self) -> Front:
        return self._front()

    def admit(self, request: web.Request) -> Pass:
        """:raises Refuse: 401, 403 or 421; the client has no business here."""
        here = from_here(request.transport)
        return self.check(request.path, request.headers, here=here)

    def check(self, path: str, headers: Mapping[str, str], *, here: bool) -> Pass:
        """As `admit`, without a request. :param here: it came in over loopback."""
        front = self._front()
        try:
            who = self.gate.check(headers, here=here, local_keys=front.local_keys)
        except Refuse:
            if path not in ALWAYS_OPEN or not self.gate.configured:
                raise
            who = OPEN
        if who.key:
            # A page that knows a key has no need to deceive anybody.
            return who
        host = headers.get("Host", "")
        if not self._check_host(front.hosts).fits(host):
            raise Refuse(_wrong_host(host))
        origin = headers.get("Origin")
        if origin is not None and cors.stranger(origin, host, front.origins):
            raise Refuse(_stranger(origin))
        return who

    def preflight(self, request: web.Request) -> web.Response | None:
        """The answer to a browser's question before it sends a page's request, else None.

        It carries no key, so none is asked for.

        :raises Refuse: that page may not.
        """
        if request.method != "OPTIONS" or not cors.is_preflight("OPTIONS", request.headers):
            return None
        answer = cors.preflight(request.headers, self._front().origins)
        if not answer:
            raise Refuse(_stranger(request.headers.get("Origin", "")))
        return web.Response(status=204, headers=answer)

    def report(self) -> dict[str, Any]:
        """What `/readyz` says of it."""
        errors = [*self.gate.errors, *filter(None, (trouble() for trouble in self.troubles))]
        closed = self.gate.closed
        served = f"this machine only: {closed}" if closed else "all addresses"
        return {"clients": {"served": served, "errors": errors}}

    def dress(self, request: web.Request, response: web.StreamResponse, who: Pass = OPEN) -> None:
        """Add what browsers and SDKs want to know to an answer's headers."""
        origins = self._front().origins
        if origins and "Access-Control-Allow-Origin" not in response.headers:
            response.headers.update(cors.told(request.headers.get("Origin", ""), origins))
        if who.key:
            response.headers.update(who.headers())
        elif response.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"

    def _check_host(self, hosts: tuple[str, ...]) -> HostCheck:
        if hosts is not self._hosts_of:
            if hosts != self._hosts_of:
                self._hosts = HostCheck((*self._names, *hosts))
            self._hosts_of = hosts
        return self._hosts


def _wrong_host(host: str) -> ApiError:
    return ApiError(
        421,
        f"The name {_shown(host)} is none of this machine's. If it should be: "
        "gateway.hosts in /etc/mesh/mesh.yaml, or send an API key.",
        "permission_error",
        code="unknown_host",
    )


def _stranger(origin: str) -> ApiError:
    return ApiError(
        403,
        f"Web pages of {_shown(origin)} may not call this gateway. If they should: "
        "gateway.origins in /etc/mesh/mesh.yaml.",
        "permission_error",
        code="origin_not_allowed",
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
