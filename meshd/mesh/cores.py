"""Who relays for the others: everybody in a small mesh, five nodes in a larger one. Pure.

Every node answers for itself from its own view; two that differ for a moment make one core too
many, which is harmless, or one too few, which the next view mends.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

WANTED = 5
# The most by which views that differ may overshoot before anybody steps down.
_SURPLUS = 2
CHANGE_EVERY_S = 60.0
ORPHAN_AFTER_S = 3.0
_RANK_STEP_S = 1.5
_ORPHAN_LATEST_S = 12.0


@dataclass(frozen=True, slots=True)
class Node:
    """One node that is not known to be dead. :ivar eligible: it may relay, and can be dialled."""

    id: str
    core: bool
    eligible: bool = True


def should_be_core(me: str, nodes: Iterable[Node]) -> bool:
    """Whether this node should relay.

    Cores stay cores; what is missing is filled by rank; only beyond twice as many as needed the
    last in rank step down.
    """
    able = sorted((node for node in nodes if node.eligible), key=lambda node: rank(node.id))
    mine = next((node for node in able if node.id == me), None)
    if mine is None:
        return False
    if len(able) <= WANTED:
        return True
    cores = [node for node in able if node.core]
    if mine.core:
        return cores.index(mine) < _SURPLUS * WANTED
    others = [node for node in able if not node.core]
    return others.index(mine) < WANTED - len(cores)


def rank(node: str) -> bytes:
    """Order in which nodes become cores: a hash (rendezvous), so that no place is favoured."""
    return hashlib.sha256(b"meshd core\0" + node.encode()).digest()


def first_core(me: str, nodes: Iterable[Node]) -> bool:
    """Whether this node is the one core that looks for lost parts of the mesh on behalf of all."""
    cores = [node.id for node in nodes if node.core]
    return me in cores and me == min(cores, key=rank)


def orphan_wait_s(me: str, nodes: Iterable[Node]) -> float:
    """How long after it lost its last core a node opens as one itself: the better its rank, the
    sooner, so that the next one finds it there.
    """
    able = sorted((node.id for node in nodes if node.eligible and not node.core), key=rank)
    place = able.index(me) if me in able else len(able)
    wait_s = ORPHAN_AFTER_S + min(_RANK_STEP_S * place, _ORPHAN_LATEST_S)
    # Beyond those that are wanted, only in case that none of them lives; and never all at once.
    return wait_s + _RANK_STEP_S * max(0, place - 2 * WANTED)


def reopen_wait_s(me: str, nodes: Iterable[Node], within_s: float) -> float:
    """When this core should reopen, so that not all cores do at once: spread by rank over
    `within_s`.
    """
    cores = sorted((node.id for node in nodes if node.core), key=rank)
    if me not in cores:
        return 0.0
    return within_s * cores.index(me) / max(len(cores), 1)
