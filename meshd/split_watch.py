"""What goes wrong with the splits that this node hosts: when one has to be arranged anew, and whom
to leave out of it.

A lost connection, a silence, a refusal or a member that does not come forward ends the term that it
happened in; the next one is planned at once. Only its engine waits, longer each time. Who was the
cause three times is left out for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from meshd.guard.status import GuardStatus
from meshd.instance import instance_name
from meshd.mesh.record import LeaseStage
from meshd.mesh.view import MeshView
from meshd.planner.hosting import lease_of
from meshd.planner.plan import Decision

_log = structlog.get_logger(__name__)

FAILURES = 3
WINDOW_S = 600.0
PROBATION_S = 600.0
_PROBATION_MOST_S = 3600.0
# What refuses does so for want of memory, mostly, and others may have some.
_REFUSAL_PROBATION_S = 60.0
# A link that is cut may be cut for long, and the mesh may still hear of who is behind it.
AVOIDED_S = 60.0
_DELAYS_S = (0.0, 2.0, 5.0, 15.0, 30.0)

ANSWER_S = 15.0
"""Within which a member answers an intent."""
_STARTING_S = 60.0
_SEEDING_STALL_S = 600.0
REACHED_S = 6.0
"""Within which a member that says it is ready is reached."""


@dataclass(frozen=True, slots=True)
class Troubles:
    """:ivar spoiled: (model, term) of arrangements that are over.

    :ivar excluded: by node, why it takes no part for now.
    :ivar avoided: likewise, why others are better for now.
    :ivar held: models whose engine does not start yet, with the seconds left.
    """

    spoiled: frozenset[tuple[str, int]] = frozenset()
    excluded: Mapping[str, str] = field(default_factory=dict)
    avoided: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class _Arrangement:
    """One term. :ivar since_s: by member, when it came to where it is; monotonic.

    :ivar seen: members that the mesh knew at any time of it.
    """

    where: dict[str, object] = field(default_factory=dict)
    since_s: dict[str, float] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Blame:
    times_s: list[float] = field(default_factory=list)
    why: str = ""
    until_s: float = 0.0
    avoided_until_s: float = 0.0
    probations: int = 0


class SplitWatch:
    """:param clock: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._arrangements: dict[tuple[str, int], _Arrangement] = {}
        self._counted: dict[tuple[str, str], tuple[float, int]] = {}
        self._blames: dict[str, _Blame] = {}
        self._spoiled: set[tuple[str, int]] = set()
        self._ends_s: dict[str, list[float]] = {}

    def look(
        self, decisions: Iterable[Decision], view: MeshView, guards: Mapping[str, GuardStatus]
    ) -> Troubles:
        """Once a pass. :param decisions: the pipelines that this node hosts now."""
        now_s = self._clock()
        present = {(one.model, one.term): one for one in decisions}
        self._arrangements = {key: self._arrangements.get(key, _Arrangement()) for key in present}
        self._spoiled &= present.keys()
        ours = {
            (instance_name(one.model), node) for one in present.values() for node in one.members
        }
        self._counted = {key: self._counted[key] for key in self._counted.keys() & ours}
        for key, decision in present.items():
            if key in self._spoiled:
                continue
            for member, why, refusal in self._wrong(decision, view, guards, now_s):
                self._end(key, member, why, now_s, refusal=refusal)
        return Troubles(
            frozenset(self._spoiled),
            self._excluded(now_s),
            {
                node: blame.why
                for node, blame in self._blames.items()
                if blame.avoided_until_s > now_s
            },
            self._held(now_s),
        )

    def _wrong(
        self,
        decision: Decision,
        view: MeshView,
        guards: Mapping[str, GuardStatus],
        now_s: float,
    ) -> Iterator[tuple[str, str, bool]]:
        guard = guards.get(instance_name(decision.model))
        if guard is not None and guard.term != decision.term:
            guard = None
        for member in decision.members:
            lost = self._lost(guard, member)
            if lost:
                yield member, lost, False
                continue
            stage, progress, detail = _where(decision, view, guard, member)
            arrangement = self._arrangements[decision.model, decision.term]
            if stage != "gone":
                arrangement.seen.add(member)
            elif member not in arrangement.seen:
                # A brain that is new has not heard of everybody yet.
                stage = "unheard"
            # What it says in between is no progress.
            if arrangement.where.get(member) != (stage, progress):
                arrangement.where[member] = (stage, progress)
                arrangement.since_s[member] = now_s
            stood_s = now_s - arrangement.since_s[member]
            if stage is LeaseStage.REFUSED:
                yield member, f"it refuses: {detail}", True
            elif stage == "gone":
                yield member, "it is gone", False
            elif stood_s > _PATIENCE_S[stage]:
                if stage == "unreached":
                    blame = self._blames.setdefault(member, _Blame())
                    blame.avoided_until_s = now_s + AVOIDED_S
                yield member, f"{_LATE[stage]} after {stood_s:.0f} s: {detail}".rstrip(": "), False

    def _lost(self, guard: GuardStatus | None, member: str) -> str:
        """What a guard counted since it was asked last."""
        if guard is None:
            return ""
        peer = next((one for one in guard.peers if one.node == member), None)
        if peer is None:
            return ""
        count = peer.silences + peer.losses
        started_s, before = self._counted.get((guard.name, member), (0.0, 0))
        if started_s != guard.started_s:
            before = 0
        self._counted[guard.name, member] = (guard.started_s, count)
        return (peer.last_trouble or "its connection was lost") if count > before else ""

    def _end(
        self, key: tuple[str, int], member: str, why: str, now_s: float, *, refusal: bool
    ) -> None:
        if key not in self._spoiled:
            ends = self._ends_s.setdefault(key[0], [])
            ends.append(now_s)
            self._ends_s[key[0]] = [at for at in ends if now_s - at < WINDOW_S][-len(_DELAYS_S) :]
        self._spoiled.add(key)
        blame = self._blames.setdefault(member, _Blame())
        blame.why = why
        blame.times_s = [at for at in blame.times_s if now_s - at < WINDOW_S] + [now_s]
        _log.warning("a split ends", model=key[0], term=key[1], member=member, why=why)
        if refusal:
            blame.until_s = max(blame.until_s, now_s + _REFUSAL_PROBATION_S)
        elif len(blame.times_s) >= FAILURES:
            blame.until_s = now_s + min(_PROBATION_MOST_S, PROBATION_S * 2**blame.probations)
            blame.probations += 1
            blame.times_s = []

    def _excluded(self, now_s: float) -> dict[str, str]:
        # Who has behaved for long begins anew.
        self._blames = {
            node: blame
            for node, blame in self._blames.items()
            if blame.until_s > now_s
            or any(now_s - at < WINDOW_S for at in blame.times_s)
            or now_s - blame.until_s < _PROBATION_MOST_S
        }
        return {
            node: f"{blame.why} (left out for {max(1, round((blame.until_s - now_s) / 60))} min)"
            for node, blame in self._blames.items()
            if blame.until_s > now_s
        }

    def _held(self, now_s: float) -> dict[str, float]:
        held = {}
        for model, ends in self._ends_s.items():
            if ends:
                left_s = ends[-1] + _DELAYS_S[min(len(ends), len(_DELAYS_S)) - 1] - now_s
                if left_s > 0:
                    held[model] = left_s
        return held


_PATIENCE_S: Mapping[object, float] = {
    "unheard": ANSWER_S,
    "silent": ANSWER_S,
    LeaseStage.SEEDING: _SEEDING_STALL_S,
    LeaseStage.STARTING: _STARTING_S,
    "unreached": REACHED_S,
    "well": float("inf"),
}
_LATE: Mapping[object, str] = {
    "unheard": "nobody has heard of it",
    "silent": "it has not answered",
    LeaseStage.SEEDING: "its weight cache does not fill",
    LeaseStage.STARTING: "its rpc-server does not start",
    "unreached": "it is not reached",
}


def _where(
    decision: Decision, view: MeshView, guard: GuardStatus | None, member: str
) -> tuple[str, float, str]:
    """How far one member is: stage, progress, detail."""
    if view.member(member) is None:
        return "gone", 0.0, ""
    lease = lease_of(view, member, decision)
    if lease is None:
        return "silent", 0.0, ""
    if lease.stage is not LeaseStage.READY:
        return lease.stage, lease.progress, lease.detail
    peer = next((one for one in guard.peers if one.node == member), None) if guard else None
    if peer is None or not peer.reached:
        return "unreached", 0.0, peer.problem if peer else ""
    return "well", 1.0, ""
