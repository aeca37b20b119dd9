"""Joining the mesh at first: through whoever answers, and as its first core when nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator, Sequence

from meshd.config.settings import Core
from meshd.mesh import cores
from meshd.mesh.bus import BusError
from meshd.mesh.candidates import Candidate
from meshd.mesh.sessions import Sessions, Surroundings
from meshd.mesh.zenoh_config import quic_endpoint

# Who is nobody's seed waits so long for the seeds before it begins a mesh without them: a large
# mesh that starts all at once must not begin as one of cores only, which no machine can carry.
_SEEDS_S = (20.0, 40.0)
_PAUSE_S, _PAUSE_MOST_S = 0.2, 5.0
_JOIN_MOST = 3
# A person who looks should not have to wait for us to give up.
_SAY_S = 3.0


class Beginning:
    """:param seed: others wait for this node. :param lan: some may be found on the LAN.

    :param fail: hears why the mesh is not reached.
    """

    def __init__(
        self,
        node: str,
        sessions: Sessions,
        around: Surroundings,
        fail: Callable[[str], None],
        *,
        role: Core,
        seed: bool,
        lan: bool,
    ) -> None:
        self._node, self._sessions, self._around, self._fail = node, sessions, around, fail
        self._role, self._seed, self._lan = role, seed, lan

    async def __call__(self) -> None:
        """Until there is a session."""
        sessions = self._sessions
        started = time.monotonic()
        patience_s = sessions.open_s + random.uniform(0, 0.5)  # noqa: S311 -- jitter
        if not self._seed:
            patience_s += random.uniform(*_SEEDS_S)  # noqa: S311
        pause_s, said = _PAUSE_S, False
        while sessions.bus is None:
            candidates = await self._around.candidates(scout=self._lan)
            try:
                if self._role is Core.ALWAYS or not (candidates or self._lan):
                    await sessions.be_core((), candidates)
                elif self._seed:
                    await self._join_as_seed(candidates)
                else:
                    await self._join(candidates)
            except BusError as error:
                if not said and time.monotonic() - started > _SAY_S:
                    said = True
                    self._fail(str(error))
            if sessions.bus is None and time.monotonic() - started >= patience_s:
                with self._failing():
                    await sessions.be_core((), candidates)
            if sessions.bus is None:
                # Who cannot be reached may be overloaded by all who try.
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
                pause_s = min(pause_s * 2, _PAUSE_MOST_S)
                # What the machine did not let us do is not what others did not do.
                patience_s += 10 * await _lateness_s()

    async def _join_as_seed(self, candidates: Sequence[Candidate]) -> None:
        """Others wait for this node, so it tries all at the same time. :raises BusError: nobody
        answered.
        """
        sessions = self._sessions
        reached = sessions.usable(await sessions.answering(candidates, enough=1))
        if not reached:
            raise BusError("no other node answers")
        await sessions.be_client(reached)

    async def _join(self, candidates: Sequence[Candidate]) -> None:
        """Be a client of the first that answers; one handshake a node is all that it costs.

        :raises BusError: nobody did.
        """
        if not candidates:
            raise BusError("no other node is known")
        ordered = sorted(candidates, key=lambda one: cores.rank(f"{one}{self._node}"))
        ordered.sort(key=lambda one: not one.core)
        places = [one.addresses[0] for one in ordered[:_JOIN_MOST]]
        # Of who is the only hope, every address.
        places += [place for one in ordered[:_JOIN_MOST] for place in one.addresses[1:2]]
        endpoints = tuple(quic_endpoint(place.host, place.port) for place in places)
        answered = False
        try:
            await self._sessions.open(core=False, connect=endpoints)
            answered = True
        finally:
            self._sessions.hurried(answered=answered)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BusError as error:
            self._fail(str(error))


async def _lateness_s() -> float:
    """How much later than asked for this process is let run."""
    asked = time.monotonic()
    await asyncio.sleep(0.05)
    return max(0.0, time.monotonic() - asked - 0.1)
