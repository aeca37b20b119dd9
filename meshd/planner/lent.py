"""The two ends of a split as one node sees them: what it lends, and its ways to those that lend."""

from __future__ import annotations

from dataclasses import dataclass

from meshd.mesh.record import Part


@dataclass(frozen=True, slots=True)
class Lent:
    """A node's part in another's split: one rpc-server and the door in front of it.

    :ivar name: the instance of both units.
    :ivar host: id of the node whose llama-server will connect, ``term`` that of its intent.
    :ivar parts: this node's own, in the order of the model's layers, from ``first_layer`` on.
    :ivar door_port: where other nodes reach it; ``rpc_port`` is on loopback only.
    """

    name: str
    model: str
    fingerprint: str
    host: str
    term: int
    parts: tuple[Part, ...]
    first_layer: int
    door_port: int
    rpc_port: int

    @property
    def layers(self) -> int:
        return sum(part.layers for part in self.parts)


@dataclass(frozen=True, slots=True)
class Way:
    """From the host of a split to one of its members.

    :ivar address: ``host:port`` of the member's door.
    :ivar local_port: on loopback, where the host's llama-server connects to.
    """

    node: str
    address: str
    local_port: int
