"""Finding out who answers where: a bare handshake, which tells the other's id, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from meshd.mesh.blocking import away
from meshd.mesh.bus import BusError
from meshd.mesh.candidates import Candidate
from meshd.mesh.zenoh_bus import new_nonce, open_session
from meshd.mesh.zenoh_config import OPEN_TIMEOUT_MS, SessionPlan, quic_endpoint, session_zid

# Each is a session of Zenoh's, with threads of its own: many at once are a load themselves.
_AT_ONCE = 6
_OTHERS_S = 0.15
_MORE_S = 0.5


@dataclass(frozen=True, slots=True)
class Reached:
    """:ivar node: id by its certificate. :ivar endpoint: where, in Zenoh's words."""

    node: str
    endpoint: str
    candidate: Candidate


class Reach:
    """Dials candidates as one node of one mesh. :param tls: folder of its certificates."""

    def __init__(self, mesh: str, node: str, tls: Path) -> None:
        self._mesh, self._node, self._tls = mesh, node, tls

    async def __call__(
        self, candidates: Sequence[Candidate], *, enough: int, timeout_s: float
    ) -> tuple[Reached, ...]:
        """Which candidates answered within `timeout_s`, never ourselves; a moment after `enough`
        of them did, the rest is not waited for.
        """
        limit = asyncio.Semaphore(_AT_ONCE)
        found: dict[int, Reached] = {}

        async def dial(number: int, endpoint: str) -> None:
            if number in found:
                return
            async with limit:
                node = await self._dial(endpoint, timeout_s)
            if node and node != self._node:
                found.setdefault(number, Reached(node, endpoint, candidates[number]))

        # Everybody's likeliest address before anybody's second.
        places = sorted(
            (turn, number, quic_endpoint(address.host, address.port))
            for number, candidate in enumerate(candidates)
            for turn, address in enumerate(candidate.addresses)
        )
        tasks = [asyncio.create_task(dial(number, endpoint)) for _, number, endpoint in places]
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            pending = set(tasks)
            while pending:
                left_s = deadline - asyncio.get_running_loop().time()
                if left_s <= 0:
                    break
                if len(found) >= enough:
                    await asyncio.wait(pending, timeout=min(_OTHERS_S, left_s))
                    break
                _, pending = await asyncio.wait(
                    pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tuple(found.values())

    async def _dial(self, endpoint: str, timeout_s: float) -> str:
        zid = session_zid(self._mesh, self._node, new_nonce())
        timeout_ms = max(OPEN_TIMEOUT_MS, int(timeout_s * 1000))
        plan = SessionPlan(
            zid=zid,
            core=False,
            tls=self._tls,
            connect=(endpoint,),
            open_timeout_ms=timeout_ms,
        )
        try:
            session = await open_session(plan, timeout_ms / 1000 + _MORE_S)
        except BusError:
            return ""
        nodes = [link.auth_identifier or "" for link in session.info.links()]
        with contextlib.suppress(Exception):
            await away(session.close, 1.0, lambda _: None)
        return nodes[0] if nodes else ""
