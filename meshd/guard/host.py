"""The host's end: one port on loopback for each member, for this node's llama-server alone.

A port takes connections only while its member was reached, so a llama-server that comes too early
fails at once instead of after two minutes. When a call or the other guard falls silent, or
rpc-server goes away, llama-server's connection is closed: it then ends by itself within 50 ms,
which nothing else makes it do, and whoever started it starts it anew.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import structlog

from meshd.gateway.certificate import Certificate
from meshd.gateway.lasting import lasting
from meshd.guard.commands import Rule, Triple, major_problem
from meshd.guard.status import End, GuardStatus
from meshd.guard.way import Way, WayOptions
from meshd.mesh.certificates import ids_in

_CERTIFICATE_LOOK_S = 5.0
_WATCH_S = 0.1
# A look that comes so late finds answers that nobody has read yet: this process had stood still.
_LATE_S = 1.0

_log = structlog.get_logger("meshd.guard")


@dataclass(frozen=True, slots=True)
class HostOptions:
    """:ivar ubatch_s: what the planner expects of a full micro-batch on the slowest stage.

    :ivar tls: folder with this node's certificate.
    """

    name: str
    ways: tuple[WayOptions, ...]
    term: int
    protocol: Triple
    ubatch_s: float
    tls: Path


class HostEnd:
    def __init__(
        self,
        options: HostOptions,
        listeners: list[socket.socket],
        on_call: Callable[[str], Callable[[Rule, float, int, int], None]],
        started_s: float,
    ) -> None:
        """:param listeners: one a way, non-blocking and listening; closed by `run`."""
        self._options = options
        self._listeners = listeners
        self._started_s = started_s
        self._certificate = Certificate()
        self._mesh = ""
        group = secrets.token_hex(8)
        self._ways = [
            Way(one, options.name, options.term, options.protocol, options.ubatch_s, group,
                self._certificate, lambda: self._mesh, on_call(one.node))
            for one in options.ways
        ]  # fmt: skip

    def status(self) -> GuardStatus:
        return GuardStatus(
            self._options.name,
            End.HOST,
            self._started_s,
            self._options.term,
            tuple(way.status() for way in self._ways),
            refused=sum(way.refused for way in self._ways),
        )

    async def run(self) -> None:
        """Until cancelled."""
        problem = major_problem(self._options.protocol)
        if problem:
            _log.error("nothing is passed", problem=problem)
        await self._look()
        tasks = [
            asyncio.create_task(lasting("following the certificate", self._follow_certificate)),
            asyncio.create_task(lasting("watching calls", self._watch)),
        ]
        for way, listener in zip(self._ways, self._listeners, strict=True):
            tasks += way.tasks(listener)
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for way in self._ways:
                await way.close()
            for listener in self._listeners:
                listener.close()

    async def _look(self) -> None:
        changed = await self._certificate.look(str(self._options.tls))
        if self._certificate.client is not None and (changed or not self._mesh):
            path = self._options.tls / "cert.pem"
            self._mesh = ""
            _, self._mesh = ids_in(await asyncio.to_thread(path.read_bytes))

    async def _follow_certificate(self) -> None:
        while True:
            await self._look()
            await asyncio.sleep(_CERTIFICATE_LOOK_S)

    async def _watch(self) -> None:
        while True:
            due_s = monotonic() + _WATCH_S
            await asyncio.sleep(_WATCH_S)
            now_s = monotonic()
            for way in self._ways:
                if now_s - due_s < _LATE_S:
                    way.watch(now_s)
                else:
                    way.overslept(now_s)
