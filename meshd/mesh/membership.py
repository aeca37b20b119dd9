"""How a node stands, from what it and the cores signed; and how patient we are with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from meshd.mesh.lattice import DEAD, REVOKED, Slot
from meshd.mesh.view import Status

HOLD_MAX_S = 60.0

ALIVE = b"a"
LEFT = b"l"


def hold_payload(for_s: float) -> bytes:
    """What a node says in ``st`` before its supervisor restarts."""
    return b"h%d" % math.ceil(min(max(for_s, 0.0), HOLD_MAX_S))


@dataclass(frozen=True, slots=True)
class Patience:
    """:ivar grace_s: from a lost token to burial, the last ping included.

    :ivar ping_s: how long an answer to a ping may take.
    """

    grace_s: float
    ping_s: float


PATIENCE = {"lan": Patience(4.0, 1.0), "wan": Patience(6.0, 2.0)}
"""By `config.settings.Preset`. Measured: a core's loss makes its clients look lost for 2 s, two at
once for 4.6 s; the ping covers the rest.
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """:ivar status: ALIVE, DEAD or LEFT; suspicion is each node's own.

    :ivar hold_until_s: until then a lost token means nothing.
    :ivar since_s: when the burial or the leaving was said.
    """

    incarnation: int = -1
    status: Status = Status.DEAD
    hold_until_s: float = 0.0
    since_s: float = 0.0


def owner_incarnation(slots: Mapping[str, Slot]) -> int:
    """The highest one that the owner signed, -1 when it said nothing."""
    return max(
        (slot.incarnation for space, slot in slots.items() if space not in (DEAD, REVOKED)),
        default=-1,
    )


def standing_of(slots: Mapping[str, Slot]) -> Standing:
    incarnation = owner_incarnation(slots)
    burial = slots.get(DEAD)
    if burial is not None and burial.incarnation >= incarnation:
        return Standing(incarnation, Status.DEAD, since_s=burial.born_s)
    said = slots.get("st")
    if said is None or said.incarnation < incarnation:
        return Standing(incarnation, Status.ALIVE)
    if said.payload == LEFT:
        return Standing(incarnation, Status.LEFT, since_s=said.born_s)
    return Standing(incarnation, Status.ALIVE, hold_until_s=said.born_s + _hold_s(said.payload))


def _hold_s(payload: bytes) -> float:
    if payload[:1] != b"h" or not payload[1:].isdigit():
        return 0.0
    return min(float(payload[1:]), HOLD_MAX_S)
