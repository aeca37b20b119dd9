"""Ids of nodes and meshes: 80 bits of a hash of their public keys, in 16 characters."""

from __future__ import annotations

import base64
import hashlib
import re

ID_LENGTH = 16
_ID = re.compile(r"[a-z2-7]{16}")


def node_id(public_key: bytes) -> str:
    """A node's id: 16 characters of a-z and 2-7. :param public_key: 32 bytes, raw."""
    return _short_hash(b"meshd node 1", public_key)


def mesh_id(authority_key: bytes) -> str:
    """A mesh's id: 16 characters of a-z and 2-7, from its authority's public key."""
    return _short_hash(b"meshd mesh 1", authority_key)


def is_id(text: str) -> bool:
    """Whether `text` has the form of a node's or a mesh's id."""
    return _ID.fullmatch(text) is not None


def _short_hash(kind: bytes, public_key: bytes) -> str:
    """The first 80 bits of SHA-256 as base32 (RFC 4648), in small letters."""
    digest = hashlib.sha256(kind + b"\0" + public_key).digest()
    return base64.b32encode(digest[:10]).decode().lower()
