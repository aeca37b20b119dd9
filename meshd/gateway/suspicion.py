"""Whom this gateway has seen fail: passed over until a probe is answered or the table says more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from meshd.gateway.metrics import GatewayMetrics
from meshd.gateway.routes import RoutingTable, Target

_log = structlog.get_logger("meshd.gateway")

_FIRST_S = 0.25
_LAST_S = 5.0
# A node that said that it lacks a model is not asked for it again before others may know.
_LACK_S = 1.0

_NOBODY: frozenset[str] = frozenset()

Probe = Callable[[Target], Awaitable[bool]]


class Suspicion:
    """:ivar keys: `Target.key` of an engine here, or of a whole node elsewhere."""

    def __init__(self, probe: Probe, metrics: GatewayMetrics, cleared: Callable[[], None]) -> None:
        """:param probe: whether a target answers. :param cleared: called when one does again."""
        self._probe = probe
        self._metrics = metrics
        self._cleared = cleared
        self._suspects: dict[str, tuple[Target, asyncio.Task[None]]] = {}
        self._lacking: dict[str, asyncio.TimerHandle] = {}
        self._fine: frozenset[str] = frozenset()

    @property
    def keys(self) -> frozenset[str]:
        if not self._suspects and not self._lacking:
            return _NOBODY
        return frozenset((*self._suspects, *self._lacking))

    @property
    def nodes(self) -> frozenset[str]:
        """Ids of the other nodes that do not answer."""
        return frozenset(target.node for target, _ in self._suspects.values() if target.address)

    def suspect(self, target: Target) -> None:
        """Use it no more until it answers a probe."""
        if target.key in self._suspects:
            return
        _log.warning("no answer", node=target.node, at=target.key)
        probing = asyncio.create_task(self._until_well(target))
        self._suspects[target.key] = target, probing
        self._count()

    def lacks(self, place: str) -> None:
        """The node is well, but said that it cannot serve there now."""
        if place not in self._lacking:
            loop = asyncio.get_running_loop()
            self._lacking[place] = loop.call_later(_LACK_S, self._try_again, place)

    def _try_again(self, place: str) -> None:
        if self._lacking.pop(place, None) is not None:
            self._cleared()

    def table_changed(self, table: RoutingTable) -> None:
        """Believe the brain about this node's own engines, and about nodes that it calls fine anew.

        Elsewhere what we saw ourselves counts more than a table that changed for other reasons.
        """
        targets = [target for route in table.routes for target in route.targets]
        listed = {target.key for target in targets if target.address}
        fine = frozenset(
            target.key
            for target in targets
            if target.address and target.ready and not target.suspect
        )
        renewed = fine - self._fine
        self._fine = fine
        for key, (target, probing) in [*self._suspects.items()]:
            if target.socket or key in renewed or key not in listed:
                probing.cancel()
                del self._suspects[key]
        for timer in self._lacking.values():
            timer.cancel()
        self._lacking.clear()
        self._count()

    async def close(self) -> None:
        probes = [probing for _, probing in self._suspects.values()]
        self._suspects.clear()
        for timer in self._lacking.values():
            timer.cancel()
        for probing in probes:
            probing.cancel()
        await asyncio.gather(*probes, return_exceptions=True)

    async def _until_well(self, target: Target) -> None:
        delay_s = _FIRST_S
        while not await self._probe(target):
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _LAST_S)
        _log.info("answers again", node=target.node, at=target.key)
        found = self._suspects.get(target.key)
        if found and found[1] is asyncio.current_task():
            del self._suspects[target.key]
        self._count()
        self._cleared()

    def _count(self) -> None:
        self._metrics.suspects.set(len(self._suspects))
