"""The mesh's X.509 certificates: what TLS on both transports checks (RFC 5280, RFC 8410).

They name ids only: a stranger who opens a connection sees a server's certificate before it has
shown one of its own.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshd.errors import UserError
from meshd.mesh.admission import Authority
from meshd.mesh.ids import node_id

_DOMAIN = "mesh.internal"
# Fixed, so that every holder of the secret makes the same certificate, byte for byte.
_CA_FROM = datetime(2020, 1, 1, tzinfo=UTC)
_CA_UNTIL = datetime(2120, 1, 1, tzinfo=UTC)
_CA_SERIAL = 1
LIFE = timedelta(days=365)
# Clocks of two nodes may differ by so much, and nobody refuses the other.
SKEW = timedelta(days=2)
# No meshd is older, so an earlier clock was never set; a later one outlives the authority.
_CLOCK_FROM = datetime(2025, 1, 1, tzinfo=UTC)
_CLOCK_UNTIL = _CA_UNTIL - LIFE


def server_name(node: str, mesh: str) -> str:
    """The DNS name in a node's certificate, which a caller's hostname check wants to see."""
    return f"{node}.{mesh}.{_DOMAIN}"


def ca_certificate(authority: Authority) -> bytes:
    """The authority's own certificate as PEM, equal for every holder of the secret."""
    public_key = authority.key.public_key()
    name = _ca_name(authority.mesh_id)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public_key)
        .serial_number(_CA_SERIAL)
        .not_valid_before(_CA_FROM)
        .not_valid_after(_CA_UNTIL)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    return builder.sign(authority.key, None).public_bytes(serialization.Encoding.PEM)


def node_certificate(authority: Authority, public_key: bytes, now: datetime) -> bytes:
    """A certificate for the node with this key as PEM, for TLS clients and servers.

    :param now: aware; valid from two days before it, for a year.

    :raises UserError: the clock cannot be right.
    """
    check_clock(now)
    key = Ed25519PublicKey.from_public_bytes(public_key)
    node = node_id(public_key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)]))
        .issuer_name(_ca_name(authority.mesh_id))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(server_name(node, authority.mesh_id))]),
            critical=False,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()),
            critical=False,
        )
    )
    return builder.sign(authority.key, None).public_bytes(serialization.Encoding.PEM)


def good(
    certificate: bytes, authority_certificate: bytes, public_key: bytes, now: datetime
) -> bool:
    """Whether this PEM still serves the node: its key, issued by this authority, begun, and with
    more than a third of its life left. False for anything that is no certificate.
    """
    try:
        held = x509.load_pem_x509_certificate(certificate)
        held.verify_directly_issued_by(x509.load_pem_x509_certificate(authority_certificate))
        key = held.public_key()
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    if not isinstance(key, Ed25519PublicKey) or key.public_bytes_raw() != public_key:
        return False
    begun, ends = held.not_valid_before_utc, held.not_valid_after_utc
    return begun <= now and (ends - now) * 3 > ends - begun


def check_clock(now: datetime) -> None:
    """:raises UserError: so far outside that no certificate made by it could serve."""
    if not _CLOCK_FROM <= now <= _CLOCK_UNTIL:
        raise UserError(
            f"this node's clock says {now:%Y-%m-%d %H:%M} UTC, so that no other node would take "
            "its certificate",
            hint="timedatectl set-ntp true",
        )


def certified_node(certificate: bytes) -> str:
    """The id of the node that a certificate (DER), checked by TLS already, belongs to.

    :raises ValueError: it is no certificate of a node, or names an id that is not its key's.
    """
    held = x509.load_der_x509_certificate(certificate)
    key = held.public_key()
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("the certificate's key is not Ed25519")
    node = node_id(key.public_bytes_raw())
    names = [name.value for name in held.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [node]:
        raise ValueError(f"the certificate names {names}, but its key is that of {node}")
    return node


def ids_in(certificate: bytes) -> tuple[str, str]:
    """The node's and the mesh's id in a node's certificate (PEM).

    :raises ValueError: it is none.
    """
    held = x509.load_pem_x509_certificate(certificate)
    try:
        names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound as error:
        raise ValueError("the certificate has no name") from error
    for name in names.get_values_for_type(x509.DNSName):
        node, _, rest = name.partition(".")
        mesh, _, domain = rest.partition(".")
        if domain == _DOMAIN:
            return node, mesh
    raise ValueError("the certificate is not one of a node")


def _ca_name(mesh: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{mesh}.{_DOMAIN}")])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
