"""Rendezvous hashing with bounded loads: the same key goes to the same target, as long as that one
has not much more to do than the others.

Highest random weight: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"
(1998); in proportion to capacities: Schindelhauer and Schomaker, "Weighted distributed hash
tables" (2005). The bound: Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded
loads" (2018).
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import blake2b

_MASK = (1 << 64) - 1
BALANCE = 3.0
"""How much more than its share a target may have: the paper's c = 1 + epsilon.

A backstop, for when nothing is known of speeds: `choice` turns away sooner than this from a target
that would take much longer than another. The closer 1.25 costs prefixes whenever a few requests
come at once: more to evaluate, later first tokens, and no evener load (`make bench-routing`).
"""


@lru_cache(maxsize=4096)
def identity(node: str, model: str) -> int:
    """64 bits for a model on a node, the same in every gateway and after every restart."""
    return int.from_bytes(blake2b(f"{node}\0{model}".encode(), digest_size=8).digest(), "big")


def mix(number: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): each bit depends on all."""
    number = (number + 0x9E3779B97F4A7C15) & _MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


def weight(key: int, target: int, share: float = 1.0) -> float:
    """How strongly the key is drawn to a target: the highest of all has it.

    :param target: its `identity`. :param share: its capacity, in any unit, more than 0.
    """
    return -share / math.log(((mix(key ^ target) >> 12) + 0.5) / 2.0**52)


def capacity(load: int, slots: int, all_slots: int, balance: float = BALANCE) -> int:
    """The most that a target may have when one more comes: `balance` times its share.

    Its share is of the load, or all of its slots if that is more: a free slot is no overload,
    however idle the others are.

    :param load: what all targets have now.
    """
    # Divided last: a quotient that is rounded first may come out above a whole number.
    return math.ceil(balance * slots * max(all_slots, load + 1) / all_slots)
