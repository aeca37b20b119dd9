"""Who is there: tokens, pings where they tell too little, and burials by cores."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from meshd.mesh.absences import Absences, Step
from meshd.mesh.envelope import Signer, seal_burial
from meshd.mesh.intake import Intake, Kind, News
from meshd.mesh.lattice import DEAD, OWNERS_MAX
from meshd.mesh.membership import Patience
from meshd.mesh.messages import DOUBTS_MAX, Ping, Pong
from meshd.mesh.outbox import Outbox
from meshd.mesh.view import Status

PING = "ping"
PINGS_MAX = 16
CORE_PINGS_MAX = 256
EVIDENCE_S = 5.0
WAKE_SPREAD_S = 0.5


class Liveness:
    """:param hear: takes in a signed item. :param touch: that a node's status may have changed.

    :param hurry: asks for a comparison within so many seconds.
    """

    def __init__(
        self,
        intake: Intake,
        absences: Absences,
        outbox: Outbox,
        signer: Signer,
        mesh: str,
        patience: Patience,
        rng: Random,
        *,
        hear: Callable[[bytes, bool], None],
        touch: Callable[[str], None],
        hurry: Callable[[float], None],
    ) -> None:
        self._intake = intake
        self._absences = absences
        self._outbox = outbox
        self._signer = signer
        self._mesh = mesh
        self._patience = patience
        self._rng = rng
        self._hear = hear
        self._touch = touch
        self._hurry = hurry
        self._pinging: set[str] = set()
        self._evidence: dict[str, float] = {}
        self._wakes: dict[str, float] = {}

    @property
    def next_s(self) -> float:
        return min(self._absences.next_s, min(self._wakes.values(), default=math.inf))

    def status(self, node: str) -> Status | None:
        if node == self._intake.me:
            return Status.ALIVE
        standing = self._intake.standing(node)
        if standing.incarnation < 0:
            return None
        if standing.status is Status.ALIVE and self._absences.suspects(node):
            return Status.SUSPECT
        return standing.status

    def session_began(self, now_s: float) -> None:
        self._absences.session_began(now_s)
        for node, standing in self._intake.standings.items():
            if standing.status is Status.ALIVE and node not in self._intake.tokens:
                self._unseen(node, now_s)

    def session_ended(self, now_s: float) -> None:
        self._intake.tokens.clear()
        for node in self._absences.nodes:
            self._touch(node)
        self._absences.session_ended(now_s)
        self._pinging.clear()

    def token_up(self, node: str, now_s: float) -> None:
        tokens = self._intake.tokens
        if len(tokens) >= 2 * OWNERS_MAX:
            return
        tokens.add(node)
        returned = node in self._absences.nodes
        if self._absences.here(node):
            self._touch(node)
        if self._intake.standing(node).status is Status.DEAD:
            returned = True
            self._wake(node, now_s)
        if returned or self._absences.core:
            # All notice a return at once; they need not all ask at once.
            self._hurry(min(4.0, 0.2 + 0.02 * len(self._intake.standings)))

    def token_down(self, node: str, now_s: float) -> None:
        self._intake.tokens.discard(node)
        standing = self._intake.standing(node)
        if (
            standing.status is Status.ALIVE
            and not self._absences.suspects(node)
            and self._outbox.connected
        ):
            self._absences.lost(node, now_s, standing.hold_until_s)
            self._touch(node)

    def tick(self, now_s: float) -> None:
        for node, step in self._absences.due(now_s):
            self._absent(node, step, now_s)
        for node in [node for node, at_s in self._wakes.items() if at_s <= now_s]:
            del self._wakes[node]
            if self._intake.standing(node).status is Status.DEAD:
                self.ping(node)

    def prune(self) -> None:
        """Forget evidence of nodes that are forgotten."""
        known = self._intake.standings
        self._evidence = {node: at for node, at in self._evidence.items() if node in known}

    def ping(self, node: str) -> bool:
        """Ask it itself; False when it is asked already, or too many are."""
        limit = CORE_PINGS_MAX if self._absences.core else PINGS_MAX
        if node in self._pinging or len(self._pinging) >= limit or not self._outbox.connected:
            return False
        self._pinging.add(node)
        burial = self._intake.lattice.get(node, DEAD)
        question = Ping(node, b"" if burial is None else burial.raw)
        self._outbox.ask(PING, node, question, self._patience.ping_s)
        return True

    def pinged(self, node: str, pong: Pong | None, now_s: float) -> None:
        """What came of a ping. :param pong: None when it did not answer as itself."""
        self._pinging.discard(node)
        if pong is not None:
            self._evidence[node] = now_s
            if pong.standing:
                self._hear(pong.standing, False)
        if self._intake.standing(node).status is not Status.ALIVE:
            return
        if pong is None and node not in self._absences.nodes:
            self._absences.unreachable(node, now_s)
        else:
            token = node in self._intake.tokens
            self._absences.pinged(node, now_s, answered=pong is not None, token=token)
        self._touch(node)
        if pong is None and not self._absences.core:
            self._hurry(0.2)

    def doubt(self, node: str) -> None:
        if node != self._intake.me and self.status(node) is Status.ALIVE:
            self.ping(node)

    def check(self, doubts: list[str], now_s: float) -> None:
        """Somebody cannot reach these; look for ourselves where we know no better."""
        for node in doubts[:DOUBTS_MAX]:
            known_s = self._evidence.get(node, -math.inf)
            if node not in self._absences.nodes and now_s - known_s > EVIDENCE_S:
                self.doubt(node)

    def heard_of(self, news: News, now_s: float) -> None:
        """Something about another node was merged."""
        node = news.owner
        if news.kind is Kind.REVOCATION:
            self._intake.tokens.discard(node)
            self._evidence.pop(node, None)
        standing = self._intake.standing(node)
        if standing.status is not Status.ALIVE:
            self._absences.here(node)
            if news.kind is Kind.BURIAL and node in self._intake.tokens:
                self._wake(node, now_s)
            return
        absence = self._absences.nodes.get(node)
        if absence is not None and news.risen:
            self._absences.here(node)
        elif absence is not None and standing.hold_until_s > now_s and not absence.unanswered:
            # The hold came after the loss of the token that it explains.
            self._absences.lost(node, now_s, standing.hold_until_s)
        if node not in self._intake.tokens:
            self._unseen(node, now_s)

    def _unseen(self, node: str, now_s: float) -> None:
        if node != self._intake.me and node not in self._absences.nodes and self._outbox.connected:
            self._absences.unseen(node, now_s)

    def _wake(self, node: str, now_s: float) -> None:
        """It is said to be dead and shows itself: let it know, so that it can say otherwise."""
        if self._absences.core and self._intake.standing(node).incarnation >= 0:
            self._wakes[node] = now_s + self._rng.uniform(0, WAKE_SPREAD_S)

    def _absent(self, node: str, step: Step, now_s: float) -> None:
        if self._intake.standing(node).status is not Status.ALIVE:
            self._absences.here(node)
        elif step is Step.PING:
            if node not in self._pinging and not self.ping(node):
                self._absences.postpone(node, step, now_s + self._patience.ping_s)
        elif step is Step.BURY:
            if now_s < self._absences.settled_s:
                self._absences.postpone(node, Step.PING, self._absences.settled_s)
            else:
                self._bury(node, now_s)
        self._touch(node)

    def _bury(self, node: str, now_s: float) -> None:
        incarnation = self._intake.standing(node).incarnation
        raw = seal_burial(self._signer, self._mesh, node, incarnation)
        self._hear(raw, False)
        if self._intake.standing(node).status is Status.DEAD:
            self._outbox.put(raw)
        else:
            # We just buried it in vain and see its token: wait for others to say so.
            self._absences.postpone(node, Step.PING, now_s + self._patience.grace_s)
