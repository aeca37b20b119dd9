"""Signed entries: who may say what, checked once where it comes in.

Ed25519 over MessagePack of (domain, mesh id, fields), so that a signature for one purpose or one
mesh is worth nothing for another. A node's id is derived from its key and never read.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from meshd.mesh.ids import is_id
from meshd.mesh.messages import Burial, Entry, Revocation, encode

SPACE_MAX_BYTES = {"rec": 16 * 1024, "dem": 8 * 1024, "bb": 32 * 1024, "st": 16}
"""Namespaces of entries: record, demand, blackboard, standing; and the most that one may hold."""

_ENTRY = "meshd entry 1"
_BURIAL = "meshd burial 1"
_REVOCATION = "meshd revocation 1"
_KNOWN_MAX = 8192


class Signer(Protocol):
    """A node's key. :ivar admission: what proves to others that the mesh admitted it."""

    @property
    def node_id(self) -> str: ...

    @property
    def public_key(self) -> bytes: ...

    @property
    def admission(self) -> bytes: ...

    def sign(self, data: bytes) -> bytes: ...


class Verifier(Protocol):
    """What a node knows of its mesh. None of the methods may raise on bad input."""

    @property
    def mesh_id(self) -> str: ...

    def admitted(self, public_key: bytes, admission: bytes) -> bool:
        """Whether the mesh let in the holder of this key."""

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool: ...

    def node_id(self, public_key: bytes) -> str: ...

    def verify_authority(self, signature: bytes, data: bytes) -> bool:
        """Whether the mesh itself signed `data`."""


def _entry_text(mesh: str, entry: Entry) -> bytes:
    return encode(
        (
            _ENTRY,
            mesh,
            entry.key,
            entry.admission,
            entry.space,
            entry.incarnation,
            entry.version,
            entry.payload,
        )
    )


def _burial_text(mesh: str, burial: Burial) -> bytes:
    return encode((_BURIAL, mesh, burial.key, burial.admission, burial.node, burial.incarnation))


def revocation_text(mesh: str, node: str) -> bytes:
    """What the mesh's authority signs to revoke a node."""
    return encode((_REVOCATION, mesh, node))


def seal_entry(
    signer: Signer, mesh: str, space: str, incarnation: int, version: int, payload: bytes
) -> bytes:
    blank = Entry(
        signer.public_key, signer.admission, space, incarnation, version, payload, bytes(64)
    )
    return encode(msgspec.structs.replace(blank, signature=signer.sign(_entry_text(mesh, blank))))


def seal_burial(signer: Signer, mesh: str, node: str, incarnation: int) -> bytes:
    blank = Burial(signer.public_key, signer.admission, node, incarnation, bytes(64))
    return encode(msgspec.structs.replace(blank, signature=signer.sign(_burial_text(mesh, blank))))


class Gate:
    """Checks signatures and remembers whom the mesh admitted."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._mesh = verifier.mesh_id
        self._ids: dict[bytes, str] = {}
        self._admitted: dict[bytes, bytes] = {}

    def owner(self, key: bytes) -> str:
        """The id of the node that has this key."""
        node = self._ids.get(key)
        if node is None:
            node = self._verifier.node_id(key)
            _remember(self._ids, key, node)
        return node

    def entry_holds(self, entry: Entry, raw: bytes) -> bool:
        """Whether its owner wrote it and is of this mesh.

        Bytes that decode to the same entry but are not the ones its owner encodes are refused:
        nobody may make a second version of another's words.
        """
        limit = SPACE_MAX_BYTES.get(entry.space)
        return (
            limit is not None
            and len(entry.payload) <= limit
            and encode(entry) == raw
            and self._admits(entry.key, entry.admission)
            and self._verifier.verify(entry.key, entry.signature, _entry_text(self._mesh, entry))
        )

    def burial_holds(self, burial: Burial, raw: bytes) -> bool:
        return (
            encode(burial) == raw
            and self._admits(burial.key, burial.admission)
            and self._verifier.verify(
                burial.key, burial.signature, _burial_text(self._mesh, burial)
            )
        )

    def revocation_holds(self, revocation: Revocation, raw: bytes) -> bool:
        return (
            is_id(revocation.node)
            and encode(revocation) == raw
            and self._verifier.verify_authority(
                revocation.signature, revocation_text(self._mesh, revocation.node)
            )
        )

    def _admits(self, key: bytes, admission: bytes) -> bool:
        if self._admitted.get(key) == admission:
            return True
        if not self._verifier.admitted(key, admission):
            return False
        _remember(self._admitted, key, admission)
        return True


def _remember(table: dict[bytes, Any], key: bytes, value: Any) -> None:
    if len(table) >= _KNOWN_MAX:
        del table[next(iter(table))]
    table[key] = value
