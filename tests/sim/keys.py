"""Signatures for a simulation: as strict as real ones towards honest mistakes, and cheap."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from meshd.mesh.ids import node_id

MESH = "simulatedmeshaaa"


def _signature(key: bytes, data: bytes) -> bytes:
    return blake2b(data, key=key, digest_size=64).digest()


@dataclass(frozen=True, slots=True)
class SimSigner:
    """:ivar public_key: signs too; nobody in a simulation uses another's."""

    public_key: bytes
    admission: bytes = b"admitted"

    @property
    def node_id(self) -> str:
        return node_id(self.public_key)

    def sign(self, data: bytes) -> bytes:
        return _signature(self.public_key, data)


class SimVerifier:
    """One for all nodes. What it found about a signature it remembers: it is pure."""

    mesh_id = MESH

    def __init__(self) -> None:
        self._ids: dict[bytes, str] = {}

    def admitted(self, public_key: bytes, admission: bytes) -> bool:
        return admission == b"admitted"

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        return _signature(public_key, data) == signature

    def node_id(self, public_key: bytes) -> str:
        found = self._ids.get(public_key)
        if found is None:
            found = self._ids[public_key] = node_id(public_key)
        return found

    def verify_authority(self, signature: bytes, data: bytes) -> bool:
        return _signature(b"authority", data) == signature
