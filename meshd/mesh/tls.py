"""TLS between nodes: version 1.3 only, both ends show a certificate of this mesh.

A server learns that a client's certificate is bad only after the client thinks that the handshake
is over (RFC 8446, 4.6.2): a client that was refused sees it at its first read.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from meshd.errors import UserError
from meshd.mesh.certificates import certified_node, server_name

__all__ = ["client_context", "handshake_problem", "peer_node_id", "server_context", "server_name"]

CA_FILE = "ca.pem"
CERTIFICATE_FILE = "cert.pem"
KEY_FILE = "key.pem"


def server_context(tls_folder: Path) -> ssl.SSLContext:
    """For the peer door: whoever has no certificate of this mesh is refused.

    Reading three small files is all it costs; make a new one when they changed.

    :raises UserError: a file is missing, damaged, or does not fit the others.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, tls_folder)
    # A ticket would let a node in again without its certificate, revoked or run out meanwhile.
    context.num_tickets = 0
    return context


def client_context(tls_folder: Path) -> ssl.SSLContext:
    """For callers of a peer door; pass ``server_hostname=server_name(node id, mesh id)``.

    :raises UserError: a file is missing, damaged, or does not fit the others.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, tls_folder)
    context.check_hostname = True
    context.hostname_checks_common_name = False
    return context


def peer_node_id(connection: ssl.SSLObject | ssl.SSLSocket) -> str:
    """The id of the node at the other end of a connection whose handshake is done.

    :raises ValueError: it showed no certificate, or one whose name is not its key's id.
    """
    certificate = connection.getpeercert(binary_form=True)
    if not certificate:
        raise ValueError("the other end showed no certificate")
    return certified_node(certificate)


def handshake_problem(error: BaseException) -> str:
    """Why a handshake failed, in words for a person; "" when it was not about certificates."""
    words = f"{getattr(error, 'verify_message', '')} {error}".lower()
    if "not yet valid" in words or "expired" in words:
        return "one of the two clocks is wrong (timedatectl), or a certificate has run out"
    if "hostname mismatch" in words:
        return "another node answers at this address"
    if "unknown ca" in words or "self-signed" in words or "issuer certificate" in words:
        return "it belongs to another mesh: name and secret must be the same on all nodes"
    if "certificate" in words:
        return "the certificate was refused: it is not one of this mesh"
    return ""


def _context(protocol: int, folder: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(folder / CA_FILE)
        context.load_cert_chain(folder / CERTIFICATE_FILE, folder / KEY_FILE)
    except OSError as error:  # ssl.SSLError is one
        raise UserError(
            f"{folder}: this node's certificate cannot be used: {error.strerror or error}",
            hint="systemctl restart meshd makes a new one",
        ) from error
    return context
