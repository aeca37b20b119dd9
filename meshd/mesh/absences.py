"""Nodes whose liveliness token we miss, or that somebody could not reach: when to do what.

A lost token makes a node suspect here. A core pings it before the grace is over and buries it when
no answer comes; everyone else pings later and more and more rarely, and leaves burying to cores.
A node whose token we never saw is asked the same way before it counts as anything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from random import Random

from meshd.mesh.membership import Patience

BURIAL_SPREAD_S = 0.4
PING_AGAIN_S = 5.0
PING_AGAIN_MAX_S = 60.0
SUSPECT_AGAIN_S = 2.0


class Step(Enum):
    SUSPECT = 1
    PING = 2
    WAIT = 3
    BURY = 4


@dataclass(slots=True)
class Absence:
    """:ivar since_s: when patience began. :ivar step: what is to be done at `next_s`.

    :ivar suspect: it gets no new requests. :ivar unanswered: pings in a row.
    """

    since_s: float
    suspect: bool
    step: Step
    next_s: float
    again_s: float = PING_AGAIN_S
    unanswered: int = 0


class Absences:
    """:ivar core: we confirm deaths. :ivar settled_s: not before then; our own session is young."""

    def __init__(self, patience: Patience, rng: Random) -> None:
        self._patience = patience
        self._rng = rng
        self.core = False
        self.settled_s = math.inf
        self.nodes: dict[str, Absence] = {}
        self._next_s = math.inf

    @property
    def next_s(self) -> float:
        return self._next_s

    def suspects(self, node: str) -> bool:
        absence = self.nodes.get(node)
        return absence is not None and absence.suspect

    @property
    def doubts(self) -> list[str]:
        """Whom we suspect and could not reach ourselves."""
        return [n for n, one in self.nodes.items() if one.suspect and one.unanswered]

    def lost(self, node: str, now_s: float, hold_until_s: float) -> None:
        """Its token went away."""
        held = hold_until_s > now_s
        start_s = hold_until_s if held else now_s
        absence = Absence(start_s, not held, Step.SUSPECT if held else Step.PING, start_s)
        if not held:
            absence.next_s = self._ping_at(start_s)
        self._keep(node, absence)

    def unseen(self, node: str, now_s: float) -> None:
        """We know of it and have not seen its token, or it proved to live without one."""
        self._keep(node, Absence(now_s, False, Step.PING, now_s + self._before_ping_s()))

    def unreachable(self, node: str, now_s: float) -> None:
        """It did not answer a ping, whatever its token says."""
        absence = self.nodes.get(node)
        if absence is None:
            absence = Absence(now_s, True, Step.PING, self._ping_at(now_s))
            self._keep(node, absence)
        absence.suspect = True
        absence.unanswered = max(1, absence.unanswered)

    def here(self, node: str) -> bool:
        """It showed itself; True when it was suspect."""
        absence = self.nodes.pop(node, None)
        return absence is not None and absence.suspect

    def pinged(self, node: str, now_s: float, *, answered: bool, token: bool) -> None:
        absence = self.nodes.get(node)
        if absence is None:
            return
        if answered:
            if token:
                del self.nodes[node]
                return
            absence.suspect = False
            absence.since_s = now_s
            absence.unanswered = 0
            self._again(absence, now_s)
            return
        absence.suspect = True
        absence.unanswered += 1
        if self.core and now_s >= self.settled_s:
            absence.step = Step.BURY
            absence.next_s = max(
                now_s + self._rng.uniform(0, BURIAL_SPREAD_S),
                absence.since_s + self._patience.grace_s,
            )
            self._wake_at(absence.next_s)
        else:
            if absence.unanswered == 1:
                # One lost answer is little evidence: look again soon, then more and more rarely.
                absence.again_s = SUSPECT_AGAIN_S
            self._again(absence, now_s)

    def session_began(self, now_s: float) -> None:
        """Our own session is new: what we miss may be only not here yet."""
        self.settled_s = now_s + self._patience.grace_s
        for absence in self.nodes.values():
            absence.since_s = max(absence.since_s, now_s)
            absence.step = Step.PING
            absence.next_s = self._ping_at(absence.since_s)
            self._wake_at(absence.next_s)

    def session_ended(self, now_s: float) -> None:
        """We lost our own: whom we missed last is likely as alive as before."""
        self.settled_s = math.inf
        for absence in self.nodes.values():
            if not absence.unanswered and now_s - absence.since_s < self._patience.grace_s:
                absence.suspect = False
            absence.step = Step.WAIT
            absence.next_s = math.inf

    def due(self, now_s: float) -> list[tuple[str, Step]]:
        """What is to be done now. A PING then waits for `pinged`, a BURY is over."""
        if now_s < self._next_s:
            return []
        found: list[tuple[str, Step]] = []
        self._next_s = math.inf
        for node, absence in self.nodes.items():
            if absence.next_s <= now_s:
                found.append((node, absence.step))
                if absence.step is Step.SUSPECT:
                    absence.suspect = True
                    absence.step = Step.PING
                    absence.next_s = self._ping_at(now_s)
                else:
                    absence.step, absence.next_s = Step.WAIT, math.inf
            self._wake_at(absence.next_s)
        return found

    def postpone(self, node: str, step: Step, until_s: float) -> None:
        """Not now: too much is under way."""
        absence = self.nodes.get(node)
        if absence is not None:
            absence.step, absence.next_s = step, until_s
            self._wake_at(until_s)

    def _before_ping_s(self) -> float:
        grace_s = self._patience.grace_s
        if self.core:
            return grace_s - self._patience.ping_s
        return grace_s * self._rng.uniform(2.0, 3.0)

    def _ping_at(self, start_s: float) -> float:
        if not self.core:
            return start_s + self._before_ping_s()
        settled_s = self.settled_s if math.isfinite(self.settled_s) else start_s
        return max(start_s + self._before_ping_s(), settled_s)

    def _again(self, absence: Absence, now_s: float) -> None:
        absence.step = Step.PING
        absence.next_s = now_s + absence.again_s * self._rng.uniform(0.8, 1.2)
        absence.again_s = min(absence.again_s * 2, PING_AGAIN_MAX_S)
        self._wake_at(absence.next_s)

    def _keep(self, node: str, absence: Absence) -> None:
        self.nodes[node] = absence
        self._wake_at(absence.next_s)

    def _wake_at(self, at_s: float) -> None:
        self._next_s = min(self._next_s, at_s)
