"""What a node needs to take part in a mesh, from wherever it came: the shared secret today."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from meshd.errors import UserError
from meshd.files import write_atomically
from meshd.mesh import admission, ids, tls
from meshd.mesh import identity as identities
from meshd.mesh.admission import ADMISSION_BYTES, KEY_BYTES, Authority, Standing
from meshd.mesh.certificates import ca_certificate, good, node_certificate
from meshd.mesh.identity import Identity
from meshd.mesh.secret import read_secret

# Of a mesh of 1,000 nodes every admission is checked once; strangers cannot make it grow.
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class NodeSigner:
    """Speaks for this node. :ivar admission: shows others that its key may speak at all."""

    identity: Identity
    admission: bytes

    @property
    def node_id(self) -> str:
        return self.identity.id

    @property
    def public_key(self) -> bytes:
        return self.identity.public_key

    def sign(self, data: bytes) -> bytes:
        return admission.sign_entry(self.identity.key, data)


class MeshVerifier:
    """Checks what others say, by the authority's public key. No call raises."""

    def __init__(self, authority_key: bytes) -> None:
        self._authority_key = authority_key
        self.mesh_id = ids.mesh_id(authority_key)
        self._standing = functools.lru_cache(_REMEMBERED)(
            functools.partial(admission.standing, authority_key)
        )

    def admitted(self, public_key: bytes, admission: bytes) -> bool:
        """Whether this key may publish in this mesh."""
        # Lengths first: what is remembered has a bound.
        if len(public_key) != KEY_BYTES or len(admission) != ADMISSION_BYTES:
            return False
        return self._standing(public_key, admission) is Standing.NODE

    def verify(self, public_key: bytes, signature: bytes, data: bytes) -> bool:
        return admission.verified_entry(public_key, signature, data)

    def verify_authority(self, signature: bytes, data: bytes) -> bool:
        """Whether the mesh's authority signed `data` (`Authority.sign`)."""
        return admission.verified_word(self._authority_key, signature, data)

    def node_id(self, public_key: bytes) -> str:
        return ids.node_id(public_key)


@dataclass(frozen=True, slots=True)
class Credentials:
    """:ivar authority: None for a node that was let in without holding the secret.

    :ivar ca: the mesh's CA certificate, PEM. :ivar certificate: this node's, PEM; "" when it is
        made here as needed.
    """

    mesh_id: str
    node_id: str
    identity: Identity
    signer: NodeSigner
    verifier: MeshVerifier
    authority: Authority | None
    ca: bytes
    certificate: bytes = b""


def from_secret(identity: Identity, secret: bytes, mesh_name: str) -> Credentials:
    """A node that holds the shared secret admits itself. Pure: the same every time."""
    authority = admission.authority(secret, mesh_name)
    return Credentials(
        mesh_id=authority.mesh_id,
        node_id=identity.id,
        identity=identity,
        signer=NodeSigner(identity, authority.admit(identity.public_key)),
        verifier=MeshVerifier(authority.public_key),
        authority=authority,
        ca=ca_certificate(authority),
    )


def credentials(
    state: Path,
    secret_file: Path,
    mesh_name: str,
    environment: Mapping[str, str] = os.environ,
) -> Credentials | None:
    """What this node holds; None where there is no secret, so that the node is alone.

    The node's key is made when there is none yet.

    :raises UserError: the secret or the key cannot be used.
    """
    secret = read_secret(secret_file, environment)
    if secret is None:
        return None
    return from_secret(identities.identity(state, environment), secret, mesh_name)


def write_tls(held: Credentials, folder: Path, now: datetime) -> bool:
    """Write ``ca.pem``, ``cert.pem`` and ``key.pem`` into `folder` (0700, files 0600).

    Call it at every start and once a day: a certificate that is good stays, one with less than a
    third of its life left is made anew.

    :returns: whether anything changed, so that TLS contexts must be made anew.
    :raises UserError: the folder cannot be written, the clock cannot be right, or the certificate
        has run out and this node cannot make one.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        present = {path.name: path.read_bytes() for path in folder.glob("*.pem")}
        wanted = {
            tls.KEY_FILE: held.identity.pem,
            tls.CA_FILE: held.ca,
            tls.CERTIFICATE_FILE: _certificate(held, present.get(tls.CERTIFICATE_FILE, b""), now),
        }
        changed = {name: data for name, data in wanted.items() if present.get(name) != data}
        for name, data in changed.items():
            write_atomically(folder / name, data, mode=0o600)
    except OSError as error:
        raise UserError(
            f"{folder}: this node's certificate cannot be written: {error.strerror}",
            hint=f"ls -ld {folder}; df {folder}",
        ) from error
    return bool(changed)


def remove_tls(folder: Path) -> None:
    """Take away what `write_tls` wrote: this node is in no mesh any more."""
    for name in (tls.KEY_FILE, tls.CERTIFICATE_FILE, tls.CA_FILE):
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be removed: {error.strerror}") from error


def _certificate(held: Credentials, present: bytes, now: datetime) -> bytes:
    for candidate in (present, held.certificate):
        if good(candidate, held.ca, held.identity.public_key, now):
            return candidate
    if held.authority is not None:
        return node_certificate(held.authority, held.identity.public_key, now)
    if held.certificate:
        return held.certificate
    raise UserError(
        f"node {held.node_id} has no certificate of mesh {held.mesh_id}",
        hint="let a node that holds the mesh's secret admit it again",
    )
