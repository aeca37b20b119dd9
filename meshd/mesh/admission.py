"""Who may take part: the mesh's authority says so of a node's key, by a signature of its own.

The authority's key is derived from the shared secret and the mesh's name, so every holder of the
secret is the same authority and there is nothing to hand out. A node that does not hold it can be
given its admission (and its certificate) by one that does: all that others check is the signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from meshd.mesh.ids import mesh_id

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ADMISSION_BYTES = 1 + SIGNATURE_BYTES

# What is signed begins with its kind, so that no signature can pass for one of another kind.
_ADMISSION = b"meshd admission 1\0"
_WORD = b"meshd authority 1\0"
_ENTRY = b"meshd entry 1\0"


class Standing(IntEnum):
    """As what a key is admitted. NODE: may publish a record. CLIENT: may only ask."""

    NODE = 1
    CLIENT = 2


@dataclass(frozen=True, slots=True)
class Authority:
    """What a holder of the mesh's secret can do: admit nodes and revoke them.

    :ivar public_key: 32 bytes, raw. :ivar mesh_id: its hash, 16 characters.
    """

    key: Ed25519PrivateKey
    public_key: bytes
    mesh_id: str

    def admit(self, public_key: bytes, standing: Standing = Standing.NODE) -> bytes:
        """The admission of a node's key: one byte of standing, then the signature."""
        claim = _ADMISSION + bytes([standing]) + public_key
        return bytes([standing]) + self.key.sign(claim)

    def sign(self, data: bytes) -> bytes:
        """The mesh's word, such as `envelope.revocation_text`; `verified_word` checks it."""
        return self.key.sign(_WORD + data)


def authority(secret: bytes, mesh_name: str) -> Authority:
    """The authority of the mesh with this secret and name: HKDF-SHA-256 (RFC 5869) -> Ed25519."""
    seed = HKDF(hashes.SHA256(), KEY_BYTES, salt=b"meshd mesh 1", info=mesh_name.encode()).derive(
        secret
    )
    key = Ed25519PrivateKey.from_private_bytes(seed)
    public_key = key.public_key().public_bytes_raw()
    return Authority(key, public_key, mesh_id(public_key))


def standing(authority_key: bytes, public_key: bytes, admission: bytes) -> Standing | None:
    """As what `public_key` was admitted, None when it was not. Never raises."""
    if len(admission) != ADMISSION_BYTES or len(public_key) != KEY_BYTES:
        return None
    if admission[0] not in (Standing.NODE, Standing.CLIENT):
        return None
    claim = _ADMISSION + admission[:1] + public_key
    return Standing(admission[0]) if _holds(authority_key, admission[1:], claim) else None


def verified_word(authority_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the mesh's authority signed `data`. Never raises."""
    return _holds(authority_key, signature, _WORD + data)


def sign_entry(key: Ed25519PrivateKey, data: bytes) -> bytes:
    """A node's signature under something it says; `verified_entry` checks it."""
    return key.sign(_ENTRY + data)


def verified_entry(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the node with this key signed `data`. Never raises."""
    return _holds(public_key, signature, _ENTRY + data)


def _holds(public_key: bytes, signature: bytes, data: bytes) -> bool:
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
