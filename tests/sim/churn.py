"""What befalls a mesh: a schedule made from a seed before anything runs, so that no change to the
code under test changes what it is tested with.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """KILL: power loss or kill -9 of all. RESTART: of meshd only, its engines live on. LEAVE: with
    a word, back later. HANG: SIGSTOP. STALL: only the event loop. DARK: a core that keeps its links
    and passes nothing on. CRASH: one engine dies. SPLIT: two halves. CUT: one node from its core.
    STORM: several at once, a core among them.
    """

    KILL = "kill"
    RESTART = "restart"
    LEAVE = "leave"
    HANG = "hang"
    STALL = "stall"
    DARK = "dark"
    CRASH = "crash"
    SPLIT = "split"
    CUT = "cut"
    STORM = "storm"


@dataclass(frozen=True, slots=True)
class Blow:
    """:ivar lasts_s: until it is undone. :ivar draw: decides what is left open, from 0 to 1."""

    at_s: float
    kind: Kind
    nodes: tuple[int, ...]
    lasts_s: float
    draw: float


@dataclass(frozen=True, slots=True)
class Rates:
    """How often a node meets what, an hour; the last five are for the whole mesh."""

    kill: float = 0.3
    restart: float = 0.2
    leave: float = 0.1
    hang: float = 0.1
    stall: float = 0.2
    crash: float = 0.1
    dark: float = 2.0
    split: float = 3.0
    cut: float = 6.0
    storm: float = 2.0


_PER_NODE = (Kind.KILL, Kind.RESTART, Kind.LEAVE, Kind.HANG, Kind.STALL, Kind.CRASH)
_PER_MESH = (Kind.DARK, Kind.SPLIT, Kind.CUT, Kind.STORM)
_LASTS_S = {
    Kind.KILL: (1.0, 90.0),
    Kind.RESTART: (0.5, 4.0),
    Kind.LEAVE: (20.0, 240.0),
    Kind.HANG: (0.5, 40.0),
    Kind.STALL: (0.2, 3.0),
    Kind.CRASH: (0.0, 0.0),
    Kind.DARK: (3.0, 20.0),
    Kind.SPLIT: (5.0, 60.0),
    Kind.CUT: (5.0, 60.0),
    Kind.STORM: (5.0, 60.0),
}


def schedule(
    seed: int, nodes: int, cores: int, start_s: float, end_s: float, rates: Rates
) -> Sequence[Blow]:
    """All blows of a run, in order of time (Poisson)."""
    chance = random.Random(f"churn {seed}")
    blows = []
    hours = (end_s - start_s) / 3600
    for kind in (*_PER_NODE, *_PER_MESH):
        rate = getattr(rates, kind.value) * (nodes if kind in _PER_NODE else 1) * hours
        if rate <= 0:
            continue
        at_s = start_s
        while (at_s := at_s + chance.expovariate(rate) * (end_s - start_s)) < end_s:
            whom: tuple[int, ...] = (chance.randrange(nodes),)
            if kind is Kind.DARK:
                whom = (chance.randrange(cores),)
            elif kind is Kind.SPLIT:
                whom = tuple(
                    sorted(chance.sample(range(nodes), nodes * chance.randint(1, 5) // 10))
                )
            elif kind is Kind.STORM:
                some = chance.sample(range(nodes), max(1, nodes // 10))
                whom = tuple(sorted({chance.randrange(cores), *some}))
            blows.append(Blow(at_s, kind, whom, chance.uniform(*_LASTS_S[kind]), chance.random()))
    return sorted(blows, key=lambda blow: (blow.at_s, blow.kind.value, blow.nodes))
