"""Nodes that the mesh no longer hears: a signed set that only grows."""

from __future__ import annotations

from meshd.mesh.envelope import Gate
from meshd.mesh.messages import Revocation, decode_signed, encode

REVOCATIONS_MAX = 1024


def seal_revocation(node: str, signature: bytes) -> bytes:
    """A revocation as it travels. :param signature: the mesh's, over `envelope.revocation_text`."""
    return encode(Revocation(node, signature))


class Revocations:
    """:ivar nodes: ids of the nodes that were revoked."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._raw: dict[str, bytes] = {}

    def __contains__(self, node: str) -> bool:
        return node in self._raw

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(self._raw)

    @property
    def sealed(self) -> tuple[bytes, ...]:
        """All of them as they travel, to be kept on disk."""
        return tuple(self._raw.values())

    def raw(self, node: str) -> bytes | None:
        return self._raw.get(node)

    def add(self, raw: bytes) -> str | None:
        """The node that this revokes, when it is news and the mesh signed it."""
        revocation = decode_signed(raw)
        if (
            not isinstance(revocation, Revocation)
            or revocation.node in self._raw
            or len(self._raw) >= REVOCATIONS_MAX
            or not self._gate.revocation_holds(revocation, raw)
        ):
            return None
        self._raw[revocation.node] = raw
        return revocation.node
