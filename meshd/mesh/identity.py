"""Who this node is: an Ed25519 key of its own, made on first start; its id is the key's hash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshd.errors import UserError
from meshd.mesh.ids import is_id, node_id
from meshd.mesh.new_file import create_atomically
from meshd.mesh.private_file import credential, read_private

__all__ = ["Identity", "existing_identity", "identity", "is_id", "node_id"]

CREDENTIAL = "mesh.identity"


@dataclass(frozen=True, slots=True)
class Identity:
    """:ivar public_key: 32 bytes, raw (RFC 8032). :ivar id: `node_id` of it."""

    key: Ed25519PrivateKey
    public_key: bytes
    id: str

    @property
    def pem(self) -> bytes:
        """The private key as unencrypted PKCS#8."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def of_key(key: Ed25519PrivateKey) -> Identity:
    public_key = key.public_key().public_bytes_raw()
    return Identity(key, public_key, node_id(public_key))


def folder_of(state: Path) -> Path:
    """Where a node keeps its key and its incarnation, below its state folder."""
    return state / "identity"


def identity(state: Path, environment: Mapping[str, str] = os.environ) -> Identity:
    """The node's identity; the key is made when there is none yet.

    :raises UserError: others may read the key, it is damaged, or it cannot be written.
    """
    found = existing_identity(state, environment)
    if found is not None:
        return found
    folder = folder_of(state)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # A second process may be first; then its key is the one.
        with contextlib.suppress(FileExistsError):
            create_atomically(
                folder / "node.key", of_key(Ed25519PrivateKey.generate()).pem, mode=0o600
            )
    except OSError as error:
        raise UserError(
            f"{folder}: the node's key cannot be written: {error.strerror}",
            hint=f"ls -ld {state} {folder}",
        ) from error
    made = existing_identity(state, environment)
    if made is None:
        raise UserError(f"{folder / 'node.key'}: vanished while it was made")
    return made


def existing_identity(state: Path, environment: Mapping[str, str] = os.environ) -> Identity | None:
    """The node's identity, or None before its first start. Writes nothing.

    The systemd credential ``mesh.identity`` wins over the file.

    :raises UserError: others may read the key, or it is damaged.
    """
    passed = credential(CREDENTIAL, environment.get("CREDENTIALS_DIRECTORY"))
    if passed is not None:
        # systemd guards it, by an ACL that shows as rights of the group.
        return _parsed(read_private(passed, forbidden=0o007), passed)
    path = folder_of(state) / "node.key"
    try:
        data = read_private(path, forbidden=0o077)
    except FileNotFoundError:
        return None
    _check_folder(path.parent)
    return _parsed(data, path)


def _check_folder(folder: Path) -> None:
    """:raises UserError: others could put a key of theirs in the place of ours."""
    rights = folder.stat().st_mode
    if rights & 0o022:
        raise UserError(
            f"{folder}: others may write here and replace the node's key",
            hint=f"chmod 0700 {folder}",
        )


def _parsed(data: bytes, path: Path) -> Identity:
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UserError(
            f"{path}: is not a private key that can be read",
            hint="restore it, or remove it: the node then joins as a new one",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"{path}: is not an Ed25519 key",
            hint="openssl genpkey -algorithm ed25519 makes one",
        )
    return of_key(key)
