"""One node's part in the mesh as a state machine: no I/O, no clock but the one passed in.

Feed it what comes (`heard`, `asked`, `token`, `answered`, `session_up`, `session_down`, `doubt`)
and call `tick` when `next_tick_s` is over; after each, do what `drain` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random

from meshd.mesh import comparison, membership
from meshd.mesh.absences import Absences, Step
from meshd.mesh.bus import ANY_CORE, Ask, Effect, Put
from meshd.mesh.comparison import Comparison
from meshd.mesh.envelope import Signer, Verifier, seal_burial
from meshd.mesh.intake import Intake, Kind, News
from meshd.mesh.lattice import OWNERS_MAX
from meshd.mesh.messages import (
    DOUBTS_MAX,
    Compare,
    Ping,
    Pong,
    Question,
    decode_answer,
    decode_question,
    encode,
)
from meshd.mesh.own_entries import OwnEntries
from meshd.mesh.record import NodeRecord
from meshd.mesh.record_codec import BadRecordError, bounded, decode_record, encode_record
from meshd.mesh.refutation import Refutation
from meshd.mesh.view import MeshView, Status
from meshd.mesh.view_cache import Decode, ViewCache

PINGS_MAX = 16
CORE_PINGS_MAX = 256
EVIDENCE_S = 5.0
WAKE_SPREAD_S = 0.5
FORGET_EVERY_S = 600.0
NODE_ID_MAX = 64

_COMPARISON = ""


class Member:
    """:param incarnation: higher than at any earlier start of this node.

    :param now: seconds, monotonic. :param preset: a `config.settings.Preset`.
    :param revocations: as they travel, kept from earlier (`sealed_revocations`).
    :param decode: of records; a simulation of many nodes shares one that remembers.
    """

    def __init__(
        self,
        signer: Signer,
        verifier: Verifier,
        incarnation: int,
        now: Callable[[], float],
        rng: Random,
        preset: str = "lan",
        *,
        core: bool = False,
        revocations: Iterable[bytes] = (),
        decode: Decode = decode_record,
    ) -> None:
        self.id = signer.node_id
        self._signer = signer
        self._mesh = verifier.mesh_id
        self._now = now
        self._rng = rng
        self._patience = membership.PATIENCE[preset]
        self._intake = Intake(self.id, verifier, incarnation)
        self._absences = Absences(self._patience, rng)
        self._absences.core = core
        self._own = OwnEntries(self._intake, signer, self._mesh)
        self._refutation = Refutation(now())
        self._comparison = Comparison(self._intake, rng, now())
        self._views = ViewCache(self._intake, self._absences, decode)
        self._effects: list[Effect] = []
        self._asks: dict[int, tuple[str, str]] = {}
        self._pinging: set[str] = set()
        self._evidence: dict[str, float] = {}
        self._wakes: dict[str, float] = {}
        self._number = 0
        self._quiet_until_s = -math.inf
        self._forget_s = now() + FORGET_EVERY_S
        self._demand_changed = False
        for raw in revocations:
            self._intake.absorb(raw, now(), put=False)

    # What the driver reads.

    @property
    def incarnation(self) -> int:
        """Ours now; to be kept on disk, so that the next start is higher."""
        return self._intake.incarnation

    @property
    def core(self) -> bool:
        return self._absences.core

    @core.setter
    def core(self, core: bool) -> None:
        self._absences.core = core

    @property
    def revoked(self) -> frozenset[str]:
        """Ids of nodes that are out for good."""
        return self._intake.revocations.nodes

    @property
    def sealed_revocations(self) -> tuple[bytes, ...]:
        """As they travel, to be kept on disk and given to the next `Member`."""
        return self._intake.revocations.sealed

    @property
    def problem(self) -> str:
        """What a person has to mend, in one sentence, or ""."""
        if self.id in self._intake.revocations:
            return "this node was revoked: no other node of the mesh hears it any more"
        return self._refutation.problem(self._now())

    @property
    def unanswered(self) -> int:
        """Comparisons in a row that nobody answered: from 2 on the session is best opened anew."""
        return self._comparison.unanswered

    @property
    def changed(self) -> bool:
        """Whether `view` may be another than when it was last called."""
        return self._views.changed

    @property
    def demand_changed(self) -> bool:
        """Whether `demand_entries` has anything new since it was last called."""
        return self._demand_changed

    def status(self, node: str) -> Status | None:
        """How a node stands, None for one that nothing is known of."""
        if node == self.id:
            return Status.ALIVE
        standing = self._intake.standing(node)
        if standing.incarnation < 0:
            return None
        if standing.status is Status.ALIVE and self._absences.suspects(node):
            return Status.SUSPECT
        return standing.status

    def view(self) -> MeshView:
        return self._views.view()

    def demand_entries(self) -> list[tuple[bytes, float]]:
        """Demand of every node that is not gone, our own too: payload and age in seconds."""
        self._demand_changed = False
        now_s = self._now()
        intake = self._intake
        return [
            (slot.payload, max(0.0, now_s - slot.born_s))
            for node, slots in intake.lattice.owners.items()
            if (slot := slots.get("dem")) is not None
            and (node == self.id or intake.standing(node).status is Status.ALIVE)
        ]

    def entries(self, space: str) -> list[tuple[str, bytes, float]]:
        """Owner, payload and age in seconds of every entry in a namespace, whoever is gone."""
        now_s = self._now()
        return [
            (node, slot.payload, max(0.0, now_s - slot.born_s))
            for node, slots in self._intake.lattice.owners.items()
            if (slot := slots.get(space)) is not None
        ]

    # What this node says.

    def publish(self, record: NodeRecord) -> None:
        """Say this of ourselves, if it is not what was said last.

        :raises BadRecordError: it has values that no reader would believe.
        """
        try:
            payload = encode_record(record)
        except BadRecordError:
            payload = encode_record(bounded(record))
        self._say("rec", payload)

    def publish_demand(self, payload: bytes) -> None:
        """:raises ValueError: it is too long."""
        self._say("dem", payload)

    def leave(self) -> None:
        """Say that we go; others drop us at once."""
        self._quiet_until_s = math.inf
        self._say("st", membership.LEFT)

    def hold(self, for_s: float) -> None:
        """Say that only our supervisor restarts: our engines go on. At most 60 s."""
        self._quiet_until_s = self._now() + for_s
        self._say("st", membership.hold_payload(for_s))

    def revoke(self, raw: bytes) -> bool:
        """Pass on a revocation (`revocations.seal_revocation`); False if the mesh did not sign it
        or it is known.
        """
        news = self._intake.absorb(raw, self._now(), put=False)
        if news is None:
            return False
        self._react(news)
        self._put(raw)
        return True

    # What comes from the bus.

    def heard(self, data: bytes) -> None:
        news = self._intake.absorb(data, self._now(), put=True)
        if news is not None:
            self._react(news)

    def asked(self, data: bytes) -> bytes | None:
        question = decode_question(data)
        if question is None:
            return None
        if isinstance(question, Ping):
            return self._pong(question)
        reply, news = comparison.answer(
            self._intake, question, self._absences.doubts[:DOUBTS_MAX], self._now()
        )
        self._react_all(news)
        if isinstance(question, Compare):
            self._check(question.doubts)
        return encode(reply)

    def token(self, node: str, *, up: bool) -> None:
        if node == self.id or node in self._intake.revocations or not 0 < len(node) <= NODE_ID_MAX:
            return
        if up:
            self._token_up(node)
        else:
            self._token_down(node)

    def answered(self, number: int, data: bytes | None) -> None:
        kind, node = self._asks.pop(number, (None, ""))
        if kind is None:
            return
        reply = None if data is None else decode_answer(data)
        if kind == _COMPARISON:
            question, news, doubts = self._comparison.heard(
                None if isinstance(reply, Pong) else reply, self._now()
            )
            self._react_all(news)
            self._check(doubts)
            if question is not None:
                self._compare(node, question)
            return
        self._pinging.discard(node)
        self._ping_over(node, reply if isinstance(reply, Pong) and reply.node == node else None)

    def session_up(self) -> None:
        """Our session with the mesh is there, or another one than before."""
        now_s = self._now()
        self._absences.session_began(now_s)
        for raw in self._own.session_began(now_s):
            self._put(raw)
        for node, standing in self._intake.standings.items():
            if standing.status is Status.ALIVE and node not in self._intake.tokens:
                self._unseen(node)
        self._comparison.session_began(now_s)

    def session_down(self) -> None:
        """We are cut off: what we miss from now on says nothing of others."""
        now_s = self._now()
        self._intake.tokens.clear()
        for node in self._absences.nodes:
            self._views.touch(node)
        self._absences.session_ended(now_s)
        self._own.session_ended(now_s)
        self._asks.clear()
        self._pinging.clear()
        self._comparison.running = False

    def doubt(self, node: str) -> None:
        """Somebody here could not reach it: ping it, and suspect it when it does not answer."""
        if self.status(node) is Status.ALIVE and node != self.id:
            self._ping(node)

    # Time.

    def next_tick_s(self) -> float:
        """Seconds until `tick` has something to do."""
        due_s = min(self._absences.next_s, self._forget_s, self._refutation.due_s)
        if self._own.connected and not self._comparison.running:
            due_s = min(due_s, self._comparison.next_s)
        if self._wakes:
            due_s = min(due_s, *self._wakes.values())
        return max(0.0, due_s - self._now())

    def tick(self) -> None:
        now_s = self._now()
        comparing = self._comparison
        if self._own.connected and not comparing.running and now_s >= comparing.next_s:
            question = comparing.begin(now_s, self._absences.doubts)
            self._compare(self._partner(), question)
        for node, step in self._absences.due(now_s):
            self._absent(node, step)
        for node in [node for node, at_s in self._wakes.items() if at_s <= now_s]:
            del self._wakes[node]
            if self._intake.standing(node).status is Status.DEAD:
                self._ping(node)
        if self._refutation.due_s <= now_s:
            self._refute()
        if now_s >= self._forget_s:
            self._forget_s = now_s + FORGET_EVERY_S
            self._intake.forget_old(now_s)
            known = self._intake.standings
            self._evidence = {n: at for n, at in self._evidence.items() if n in known}

    def drain(self) -> list[Effect]:
        """What is to be done since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # Below here: how it goes about it.

    def _say(self, space: str, payload: bytes) -> None:
        raw = self._own.say(space, payload, self._now())
        if space == "rec":
            self._views.touch(self.id)
        if raw is not None:
            self._put(raw)

    def _put(self, raw: bytes) -> None:
        if self._own.connected:
            self._effects.append(Put(raw))

    def _ask(self, kind: str, node: str, question: Question, timeout_s: float) -> None:
        self._number += 1
        self._asks[self._number] = (kind, node)
        self._effects.append(Ask(self._number, node, encode(question), timeout_s))

    def _compare(self, target: str, question: Question) -> None:
        self._ask(_COMPARISON, target, question, comparison.TIMEOUT_S)

    def _partner(self) -> str:
        """Cores compare with each other, so that halves that were apart become equal."""
        if not self.core:
            return ANY_CORE
        others = [
            member.id
            for member in self.view().members
            if member.record.core and member.id in self._intake.tokens
        ]
        return self._rng.choice(others) if others else ANY_CORE

    def _ping(self, node: str) -> bool:
        limit = CORE_PINGS_MAX if self.core else PINGS_MAX
        if node in self._pinging or len(self._pinging) >= limit or not self._own.connected:
            return False
        self._pinging.add(node)
        burial = self._intake.lattice.get(node, "dead")
        question = Ping(node, b"" if burial is None else burial.raw)
        self._ask("ping", node, question, self._patience.ping_s)
        return True

    def _pong(self, ping: Ping) -> bytes | None:
        if ping.node != self.id:
            return None
        if ping.burial:
            self.heard(ping.burial)
        return encode(Pong(self.id, self._own.standing))

    def _ping_over(self, node: str, pong: Pong | None) -> None:
        now_s = self._now()
        if pong is not None:
            self._evidence[node] = now_s
            if pong.standing:
                self.heard(pong.standing)
        if self._intake.standing(node).status is not Status.ALIVE:
            return
        if pong is None and node not in self._absences.nodes:
            self._absences.unreachable(node, now_s)
        else:
            self._absences.pinged(
                node, now_s, answered=pong is not None, token=node in self._intake.tokens
            )
        self._views.touch(node)
        if pong is None and not self.core:
            self._comparison.hurry(now_s, 0.2)

    def _check(self, doubts: list[str]) -> None:
        """Somebody cannot reach these; look for ourselves where we know no better."""
        now_s = self._now()
        for node in doubts[:DOUBTS_MAX]:
            known_s = self._evidence.get(node, -math.inf)
            if node not in self._absences.nodes and now_s - known_s > EVIDENCE_S:
                self.doubt(node)

    def _token_up(self, node: str) -> None:
        tokens = self._intake.tokens
        if len(tokens) >= 2 * OWNERS_MAX:
            return
        tokens.add(node)
        returned = node in self._absences.nodes
        if self._absences.here(node):
            self._views.touch(node)
        if self._intake.standing(node).status is Status.DEAD:
            returned = True
            self._wake(node)
        if returned or self.core:
            self._comparison.hurry(self._now(), self._spread_s())

    def _token_down(self, node: str) -> None:
        self._intake.tokens.discard(node)
        standing = self._intake.standing(node)
        if standing.status is not Status.ALIVE or self._absences.suspects(node):
            return
        if not self._own.connected:
            return
        self._absences.lost(node, self._now(), standing.hold_until_s)
        self._views.touch(node)

    def _unseen(self, node: str) -> None:
        if node != self.id and node not in self._absences.nodes and self._own.connected:
            self._absences.unseen(node, self._now())

    def _wake(self, node: str) -> None:
        """It is said to be dead and shows itself: let it know, so that it can say otherwise."""
        if self.core and self._intake.standing(node).incarnation >= 0:
            self._wakes[node] = self._now() + self._rng.uniform(0, WAKE_SPREAD_S)

    def _spread_s(self) -> float:
        """All notice a return at once; they need not all ask at once."""
        return min(4.0, 0.2 + 0.02 * len(self._intake.standings))

    def _absent(self, node: str, step: Step) -> None:
        now_s = self._now()
        if self._intake.standing(node).status is not Status.ALIVE:
            self._absences.here(node)
        elif step is Step.PING:
            if node not in self._pinging and not self._ping(node):
                self._absences.postpone(node, step, now_s + self._patience.ping_s)
        elif step is Step.BURY:
            if now_s < self._absences.settled_s:
                self._absences.postpone(node, Step.PING, self._absences.settled_s)
            else:
                self._bury(node)
        self._views.touch(node)

    def _bury(self, node: str) -> None:
        incarnation = self._intake.standing(node).incarnation
        raw = seal_burial(self._signer, self._mesh, node, incarnation)
        news = self._intake.absorb(raw, self._now(), put=False)
        if news is None:
            # We just buried it in vain and see its token: wait for others to say so.
            self._absences.postpone(node, Step.PING, self._now() + self._patience.grace_s)
            return
        self._react(news)
        self._put(raw)

    def _react_all(self, news: Iterable[News]) -> None:
        for one in news:
            self._react(one)
            if one.kind is Kind.REVOCATION and self.core:
                # It came in a comparison, so some have not heard it.
                raw = self._intake.revocations.raw(one.owner)
                if raw is not None:
                    self._put(raw)

    def _react(self, news: News) -> None:
        now_s = self._now()
        node = news.owner
        if news.kind is Kind.CLASH:
            if news.incarnation < self.incarnation:
                self._refutation.echo(now_s)
            elif self._refutation.clash(now_s):
                self._rise(news.incarnation)
                for raw in self._own.say_again(now_s):
                    self._put(raw)
            return
        if news.kind is Kind.BURIED:
            self._refutation.wanted(now_s)
            if self._refutation.due_s <= now_s:
                self._refute()
            return
        self._comparison.moved(now_s)
        if news.space == "dem":
            self._demand_changed = True
        else:
            self._views.touch(node)
        if node == self.id:
            return
        if news.kind is Kind.REVOCATION:
            self._intake.tokens.discard(node)
            self._evidence.pop(node, None)
        standing = self._intake.standing(node)
        if standing.status is not Status.ALIVE:
            self._absences.here(node)
            if news.kind is Kind.BURIAL and node in self._intake.tokens:
                self._wake(node)
            return
        self._lives(node, news)

    def _lives(self, node: str, news: News) -> None:
        """An entry of a node that is alive came in."""
        now_s = self._now()
        absence = self._absences.nodes.get(node)
        hold_until_s = self._intake.standing(node).hold_until_s
        if absence is not None and news.risen:
            self._absences.here(node)
        elif absence is not None and hold_until_s > now_s and not absence.unanswered:
            # The hold came after the loss of the token that it explains.
            self._absences.lost(node, now_s, hold_until_s)
        if node not in self._intake.tokens:
            self._unseen(node)

    def _rise(self, above: int) -> None:
        self._intake.incarnation = max(self.incarnation, above) + 1
        self._views.touch(self.id)

    def _refute(self) -> None:
        """We are said to be dead: say otherwise, in a higher incarnation."""
        now_s = self._now()
        self._refutation.done(now_s)
        if now_s < self._quiet_until_s:
            return
        self._rise(self.incarnation)
        self._own.forget("st")
        self._say("st", membership.ALIVE)
        self._comparison.hurry(now_s, 1.0)
