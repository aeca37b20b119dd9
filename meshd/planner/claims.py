"""What becomes of this node's own assignments. Pure: the caller tells how long each one has stood.

Exactly one node starts a missing model although nobody is in charge. A node that the plan names
says so first (CLAIMED) and starts the engine only when the claim has stood for two windows, where
a window is the longest that a message takes. Whoever claimed without having seen ours did so
within one window after us, and its claim reaches us within another; whoever saw ours leaves it
alone, because the plan keeps a claim that stands. So before anybody starts, all rivals know of
each other, and the plan, which compares them by what their own records say, keeps the same one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from meshd.mesh.record import Assignment, Stage
from meshd.planner.mesh_plan import MeshPlan, Placement, Release, Replica, releases

CLAIM_WINDOW_S = 0.4
"""Longest time of a message on a LAN: 119 ms at the 95th percentile with 20 % loss, measured."""

_CLAIM_WINDOWS = 2
# Where members come and go without pause, a claim does not wait for calm for ever.
_IMPATIENT_WINDOWS = 10

RETRY_S = 300.0
"""After which a failed assignment is forgotten, so that the plan may choose this node again."""


class Engine(StrEnum):
    """The engine of one model on this node, as the supervisor sees it."""

    ABSENT = "absent"
    STARTING = "starting"
    ANSWERS = "answers"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Own:
    """One of this node's assignments and what only this node knows of it.

    :ivar stage_s: seconds since it came to its stage; for READY since it first answered.
    :ivar progress: of loading, 0 to 1.
    :ivar detail: why it failed.
    """

    assignment: Assignment
    stage_s: float
    engine: Engine = Engine.ABSENT
    progress: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Claims:
    """:ivar assignments: what the node's record should say now, and what it should act on.

    :ivar again_s: when to ask again although nothing was heard; None for not before an event.
    """

    assignments: tuple[Assignment, ...]
    again_s: float | None = None


def next_claims(
    plan: MeshPlan,
    me: str,
    own: Sequence[Own],
    *,
    calm_s: float,
    terms: Mapping[str, int] | None = None,
    window_s: float = CLAIM_WINDOW_S,
    dwell_s: float = 300.0,
    retry_s: float = RETRY_S,
    early: bool = False,
) -> Claims:
    """Bring the node's assignments one step towards the plan.

    The plan must come from a view that has this node's own newest record.

    CLAIMED: nothing runs yet. LOADING: start the engine. DRAINING: send it no new requests and stop
    it when the last has ended; it is gone from the answer as soon as `own` says ABSENT.

    :param calm_s: since a member last came, went or was missed.
    :param terms: the highest term that this node has used, by model.
    :param dwell_s: a replica that has answered for so long may be given back (`settled`).
    :param early: who serves or named what may not have been heard of yet: claim nothing new, and
        give nothing back.
    """
    clock = _Clock(calm_s, window_s, dwell_s, retry_s)
    going = {release.model: release for release in releases(plan, me)} if not early else {}
    draining = any(one.assignment.stage is Stage.DRAINING for one in own) or any(
        one.assignment.stage in (Stage.LOADING, Stage.READY) and one.assignment.model in going
        for one in own
    )
    firm = {
        one.assignment.model
        for one in own
        if one.assignment.stage is not Stage.CLAIMED or clock.stood(one)
    }
    # A split takes memory of several nodes: what gives way may run on another than its host, which
    # starts nothing before that.
    firm.update(_claimed_elsewhere(plan, me))
    awaited = {
        release.in_favour_of
        for placement in plan.placements
        for release in placement.releases
        if release.node != me
    }
    result: list[Assignment] = []
    for one in own:
        model = one.assignment.model
        placement = plan.placement(model)
        replica = placement.replica(me) if placement is not None else None
        release = going.get(model)
        if release is not None and release.in_favour_of and release.in_favour_of not in firm:
            release = None
        waits = draining or model in awaited
        after = _next(one, replica, release, placement, clock, draining=waits)
        if after is not None:
            result.append(after)
    present = {one.assignment.model for one in own}
    for model in plan.models_of(me) if not early else ():
        placement = plan.placement(model)
        if model not in present and placement is not None:
            result.append(_claim(placement, me, 1 + (terms or {}).get(model, 0)))
            clock.wake(_CLAIM_WINDOWS * window_s)
    return Claims(tuple(result), clock.again_s)


def _claimed_elsewhere(plan: MeshPlan, me: str) -> Iterator[str]:
    """Models that another node is about to start, and this one is not."""
    for placement in plan.placements:
        if placement.replica(me) is None and any(
            replica.stage is Stage.CLAIMED for replica in placement.replicas
        ):
            yield placement.model


class _Clock:
    """How long things take, and when the next of them is due."""

    def __init__(self, calm_s: float, window_s: float, dwell_s: float, retry_s: float) -> None:
        self._calm_s = calm_s
        self._window_s = window_s
        self._dwell_s = dwell_s
        self._retry_s = retry_s
        self.again_s: float | None = None

    def wake(self, in_s: float) -> None:
        if in_s > 0:
            self.again_s = in_s if self.again_s is None else min(self.again_s, in_s)

    def stood(self, one: Own) -> bool:
        """Whether a claim may become a start."""
        impatient_s = _IMPATIENT_WINDOWS * self._window_s - one.stage_s
        if impatient_s <= 0:
            return True
        wait_s = max(_CLAIM_WINDOWS * self._window_s - one.stage_s, self._window_s - self._calm_s)
        if wait_s <= 0:
            return True
        self.wake(min(wait_s, impatient_s))
        return False

    def settled(self, one: Own) -> bool:
        self.wake(self._dwell_s - one.stage_s)
        return one.stage_s >= self._dwell_s

    def forgotten(self, one: Own) -> bool:
        self.wake(self._retry_s - one.stage_s)
        return one.stage_s >= self._retry_s


def _next(
    one: Own,
    replica: Replica | None,
    release: Release | None,
    placement: Placement | None,
    clock: _Clock,
    *,
    draining: bool,
) -> Assignment | None:
    now = one.assignment
    match now.stage:
        case Stage.DRAINING:
            return None if one.engine is Engine.ABSENT else now
        case Stage.CLAIMED:
            if replica is None or placement is None:
                return None
            # Memory that another engine is about to give back is not there yet.
            if draining or not clock.stood(one):
                return now
            return replace(
                now,
                stage=Stage.LOADING,
                fingerprint=placement.fingerprint,
                memory=replica.memory,
            )
        case Stage.FAILED if one.engine is Engine.ANSWERS:
            return replace(now, stage=Stage.READY, detail="", settled=False)
        case Stage.FAILED:
            return None if placement is None or clock.forgotten(one) else now
    if release is not None:
        return replace(now, stage=Stage.DRAINING, progress=0.0, detail=release.text)
    if one.engine is Engine.FAILED:
        return replace(
            now, stage=Stage.FAILED, progress=0.0, settled=False, detail=one.detail or "it failed"
        )
    if one.engine is Engine.ANSWERS:
        settled = now.stage is Stage.READY and clock.settled(one)
        return replace(now, stage=Stage.READY, progress=1.0, settled=now.settled or settled)
    if now.stage is Stage.READY:
        # It has stopped answering and is being started again: others should not send it anything.
        return replace(now, stage=Stage.LOADING, progress=0.0)
    return replace(now, progress=round(min(1.0, max(0.0, one.progress)), 1))


def _claim(placement: Placement, me: str, term: int) -> Assignment:
    replica = placement.replica(me)
    return Assignment(
        model=placement.model,
        fingerprint=placement.fingerprint,
        stage=Stage.CLAIMED,
        term=term,
        context=placement.context,
        slots=placement.slots,
        memory=replica.memory if replica is not None else (),
        parts=replica.parts if replica is not None else (),
    )
