"""One node's part in the mesh as a state machine: no I/O, no clock but the one passed in.

Feed it what comes (`heard`, `asked`, `token`, `answered`, `session_up`, `session_down`, `doubt`)
and call `tick` when `next_tick_s` is over; after each, do what `drain` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random

from meshd.mesh import comparison, membership
from meshd.mesh.absences import Absences
from meshd.mesh.bus import ANY_CORE, Effect
from meshd.mesh.comparison import Comparison
from meshd.mesh.envelope import Signer, Verifier
from meshd.mesh.intake import Intake, Kind, News
from meshd.mesh.liveness import Liveness
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
from meshd.mesh.outbox import Outbox
from meshd.mesh.own_entries import OwnEntries
from meshd.mesh.record import NodeRecord
from meshd.mesh.record_codec import BadRecordError, bounded, decode_record, encode_record
from meshd.mesh.refutation import Refutation
from meshd.mesh.view import MeshView, Status
from meshd.mesh.view_cache import Decode, ViewCache

FORGET_EVERY_S = 600.0
NODE_ID_MAX = 64

_COMPARISON = "compare"


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
        patience = membership.PATIENCE[preset]
        self._intake = Intake(self.id, verifier, incarnation)
        self._absences = Absences(patience, rng)
        self._absences.core = core
        self._own = OwnEntries(self._intake, signer, self._mesh)
        self._refutation = Refutation(now())
        self._comparison = Comparison(self._intake, rng, now())
        self._views = ViewCache(self._intake, self._absences, decode)
        self._outbox = Outbox()
        self._liveness = Liveness(
            self._intake,
            self._absences,
            self._outbox,
            signer,
            self._mesh,
            patience,
            rng,
            hear=lambda raw, put: self._hear(raw, put=put),
            touch=self._views.touch,
            hurry=lambda spread_s: self._comparison.hurry(now(), spread_s),
        )
        self._quiet_until_s = -math.inf
        self._turn = rng.randrange(1 << 16)
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
        return self._liveness.status(node)

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
        self._outbox.put(raw)
        return True

    # What comes from the bus.

    def heard(self, data: bytes) -> None:
        self._hear(data, put=True)

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
            self._liveness.check(question.doubts, self._now())
        return encode(reply)

    def token(self, node: str, *, up: bool) -> None:
        if node == self.id or node in self._intake.revocations or not 0 < len(node) <= NODE_ID_MAX:
            return
        if up:
            self._liveness.token_up(node, self._now())
        else:
            self._liveness.token_down(node, self._now())

    def answered(self, number: int, data: bytes | None) -> None:
        asked = self._outbox.answered(number)
        if asked is None:
            return
        kind, node = asked
        reply = None if data is None else decode_answer(data)
        if kind == _COMPARISON:
            question, news, doubts = self._comparison.heard(
                None if isinstance(reply, Pong) else reply, self._now()
            )
            self._react_all(news)
            self._liveness.check(doubts, self._now())
            if question is not None:
                self._compare(node, question)
            return
        pong = reply if isinstance(reply, Pong) and reply.node == node else None
        self._liveness.pinged(node, pong, self._now())

    def session_up(self) -> None:
        """Our session with the mesh is there, or another one than before."""
        now_s = self._now()
        self._outbox.connected = True
        for raw in self._own.session_began(now_s):
            self._outbox.put(raw)
        self._liveness.session_began(now_s)
        self._comparison.session_began(now_s)

    def session_down(self) -> None:
        """We are cut off: what we miss from now on says nothing of others."""
        now_s = self._now()
        self._liveness.session_ended(now_s)
        self._own.session_ended(now_s)
        self._outbox.connected = False
        self._outbox.forget()
        self._comparison.running = False

    def doubt(self, node: str) -> None:
        """Somebody here could not reach it: ping it, and suspect it when it does not answer."""
        self._liveness.doubt(node)

    # Time.

    def next_tick_s(self) -> float:
        """Seconds until `tick` has something to do."""
        due_s = min(self._liveness.next_s, self._forget_s, self._refutation.due_s)
        if self._outbox.connected and not self._comparison.running:
            due_s = min(due_s, self._comparison.next_s)
        return max(0.0, due_s - self._now())

    def tick(self) -> None:
        now_s = self._now()
        comparing = self._comparison
        if self._outbox.connected and not comparing.running and now_s >= comparing.next_s:
            question = comparing.begin(now_s, self._absences.doubts)
            self._compare(self._partner(), question)
        self._liveness.tick(now_s)
        if self._refutation.due_s <= now_s:
            self._refute()
        if now_s >= self._forget_s:
            self._forget_s = now_s + FORGET_EVERY_S
            self._intake.forget_old(now_s)
            self._liveness.prune()

    def drain(self) -> list[Effect]:
        """What is to be done since the last call."""
        return self._outbox.drain()

    # Below here: how it goes about it.

    def _say(self, space: str, payload: bytes) -> None:
        raw = self._own.say(space, payload, self._now())
        if space == "rec":
            self._views.touch(self.id)
        if raw is not None:
            self._outbox.put(raw)
            self._comparison.moved(self._now(), core=self.core)

    def _hear(self, raw: bytes, *, put: bool) -> None:
        news = self._intake.absorb(raw, self._now(), put=put)
        if news is not None:
            self._react(news)

    def _compare(self, target: str, question: Question) -> None:
        self._outbox.ask(_COMPARISON, target, question, comparison.TIMEOUT_S)

    def _partner(self) -> str:
        """Cores compare with each other, so that halves that were apart become equal."""
        if not self.core:
            return ANY_CORE
        others = [
            member.id
            for member in self.view().members
            if member.record.core and member.id in self._intake.tokens
        ]
        if not others:
            return ANY_CORE
        # In turn: after a change each has been asked before long.
        self._turn += 1
        return others[self._turn % len(others)]

    def _pong(self, ping: Ping) -> bytes | None:
        if ping.node != self.id:
            return None
        if ping.burial:
            self._hear(ping.burial, put=True)
        return encode(Pong(self.id, self._own.standing))

    def _react_all(self, news: Iterable[News]) -> None:
        for one in news:
            self._react(one)
            if one.kind is Kind.REVOCATION and self.core:
                # It came in a comparison, so some have not heard it.
                raw = self._intake.revocations.raw(one.owner)
                if raw is not None:
                    self._outbox.put(raw)

    def _react(self, news: News) -> None:
        now_s = self._now()
        node = news.owner
        if news.kind is Kind.CLASH:
            if news.incarnation < self.incarnation:
                self._refutation.echo(now_s)
            elif self._refutation.clash(now_s):
                self._rise(news.incarnation)
                for raw in self._own.say_again(now_s):
                    self._outbox.put(raw)
            return
        if news.kind is Kind.BURIED:
            self._refutation.wanted(now_s)
            if self._refutation.due_s <= now_s:
                self._refute()
            return
        self._comparison.moved(now_s, core=self.core)
        if news.space == "dem":
            self._demand_changed = True
        else:
            self._views.touch(node)
        if node != self.id:
            self._liveness.heard_of(news, now_s)

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
