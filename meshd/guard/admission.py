"""Whom the member's door lets in: a decision on a frozen state.

One node, for one term, with one group of connections at a time. A group is given up for a newer
one only when nothing of it is left: its connections are closed, or its control channel fell silent.
"""

from __future__ import annotations

from dataclasses import dataclass

from meshd.guard.greeting import VERSION, Greeting, Want

# llama-server has one connection open, and may open the next before the last is gone.
MOST_CONNECTIONS = 4


@dataclass(frozen=True, slots=True)
class Door:
    """:ivar admit: id of the only node that may come, ``term`` of its lease.

    :ivar group: that has the door, "" for none. :ivar connections: of it, that carry RPC.
    :ivar controlled: its control channel is alive.
    """

    admit: str
    term: int
    group: str = ""
    connections: int = 0
    controlled: bool = False


def stranger(door: Door, node: str) -> str:
    """Why this node may not even speak, "" when it may."""
    if node == door.admit:
        return ""
    return f"node {node or 'unknown'} is not the host of this split"


def refusal(door: Door, greeting: Greeting) -> str:
    """Why the admitted node's connection is refused, "" when it may stay."""
    if greeting.version != VERSION:
        return f"guards of version {VERSION} and {greeting.version}: upgrade meshd on both nodes"
    if greeting.term != door.term:
        return f"term {greeting.term} is asked for, this door is open for term {door.term}"
    if not greeting.group:
        return "the greeting names no group"
    if greeting.group != door.group and door.connections and door.controlled:
        return "another engine of the host is connected"
    if greeting.want is Want.RPC:
        if greeting.group == door.group and door.connections >= MOST_CONNECTIONS:
            return f"{MOST_CONNECTIONS} connections are open already"
        if greeting.group != door.group or not door.controlled:
            return "no control channel was opened first"
    return ""
