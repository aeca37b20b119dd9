from __future__ import annotations

import random
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshd.errors import UserError
from meshd.mesh.admission import authority
from meshd.mesh.certificates import (
    LIFE,
    SKEW,
    ca_certificate,
    certified_node,
    good,
    node_certificate,
    server_name,
)
from meshd.mesh.credentials import Credentials, from_secret, write_tls
from meshd.mesh.identity import of_key
from meshd.mesh.tls import client_context, handshake_problem, server_context

SECRET = b"tqwf-bq5k-ks37-n2yc-vwzz-4g3a-6mfo-p7xd"
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
OURS = authority(SECRET, "the mesh of Example Ltd")
CA = ca_certificate(OURS)
KEY = of_key(Ed25519PrivateKey.generate())
DAY = timedelta(days=1)


def member(name: str = "mesh") -> Credentials:
    return from_secret(of_key(Ed25519PrivateKey.generate()), SECRET, name)


def parsed(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def test_every_holder_makes_the_same_ca_certificate() -> None:
    assert ca_certificate(authority(SECRET, "the mesh of Example Ltd")) == CA
    assert ca_certificate(authority(SECRET, "another")) != CA


def test_a_certificate_names_ids_and_nothing_else() -> None:
    der = ssl.PEM_cert_to_DER_cert(node_certificate(OURS, KEY.public_key, NOW).decode())
    assert certified_node(der) == KEY.id
    held = x509.load_der_x509_certificate(der)
    names = held.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [server_name(KEY.id, OURS.mesh_id)]
    assert server_name(KEY.id, OURS.mesh_id) == f"{KEY.id}.{OURS.mesh_id}.mesh.internal"
    assert [part.value for part in held.subject] == [KEY.id]
    assert [part.value for part in held.issuer] == [f"{OURS.mesh_id}.mesh.internal"]
    assert b"Example" not in der


def test_its_life_leaves_room_for_clocks_that_differ() -> None:
    held = parsed(node_certificate(OURS, KEY.public_key, NOW))
    assert held.not_valid_before_utc == NOW - SKEW
    assert held.not_valid_after_utc == NOW + LIFE


def test_it_is_good_until_a_third_of_its_life_is_left() -> None:
    pem = node_certificate(OURS, KEY.public_key, NOW)
    life = LIFE + SKEW

    def still(now: datetime) -> bool:
        return good(pem, CA, KEY.public_key, now)

    assert still(NOW)
    assert still(NOW - SKEW)
    assert still(NOW + LIFE - life / 3 - DAY)
    assert not still(NOW + LIFE - life / 3 + DAY)
    assert not still(NOW - SKEW - DAY), "the clock was set back: others would not take it"


def test_it_is_good_for_one_key_of_one_mesh_only() -> None:
    pem = node_certificate(OURS, KEY.public_key, NOW)
    assert not good(pem, CA, member().identity.public_key, NOW)
    assert not good(pem, ca_certificate(authority(SECRET, "another")), KEY.public_key, NOW)


@pytest.mark.parametrize("year", [1970, 1980, 2024, 2120, 2999])
def test_a_clock_that_cannot_be_right_is_said(year: int) -> None:
    with pytest.raises(UserError, match=rf"clock says {year}-01-02 .*timedatectl"):
        node_certificate(OURS, KEY.public_key, datetime(year, 1, 2, tzinfo=UTC))


def test_a_name_that_is_not_the_keys_is_refused() -> None:
    """Whoever holds the secret could write it; the certificate itself gives it away."""
    held = parsed(node_certificate(OURS, KEY.public_key, NOW))
    forged = (
        x509.CertificateBuilder()
        .subject_name(held.subject)
        .issuer_name(held.issuer)
        .public_key(member().identity.key.public_key())
        .serial_number(7)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(OURS.key, None)
    )
    with pytest.raises(ValueError, match="but its key is that of"):
        certified_node(ssl.PEM_cert_to_DER_cert(_pem(forged)))


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def test_a_thousand_broken_certificates_are_never_good() -> None:
    pem = node_certificate(OURS, KEY.public_key, NOW)
    chance = random.Random(7)
    for _ in range(1000):
        data = bytearray(pem)
        start, end = pem.index(b"\n") + 1, pem.rindex(b"\n-----END")
        where = chance.randrange(start, end)
        if chance.random() < 0.7:
            data[where] = chance.randrange(256)
        else:
            del data[where : where + chance.randint(1, 200)]
        try:
            same = x509.load_pem_x509_certificate(bytes(data)) == parsed(pem)
        except ValueError:
            same = False
        assert good(bytes(data), CA, KEY.public_key, NOW) == same


class TestFiles:
    def test_they_are_private_and_stay(self, tmp_path: Path) -> None:
        held, folder = member(), tmp_path / "run/tls"
        assert write_tls(held, folder, NOW)
        first = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert set(first) == {"ca.pem", "cert.pem", "key.pem"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert not write_tls(held, folder, NOW + DAY)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == first

    def test_a_folder_that_was_open_is_closed(self, tmp_path: Path) -> None:
        folder = tmp_path / "tls"
        folder.mkdir(mode=0o755)
        write_tls(member(), folder, NOW)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_the_certificate_is_renewed_in_time(self, tmp_path: Path) -> None:
        held = member()
        write_tls(held, tmp_path, NOW)
        before = parsed((tmp_path / "cert.pem").read_bytes())
        assert write_tls(held, tmp_path, NOW + 300 * DAY)
        after = parsed((tmp_path / "cert.pem").read_bytes())
        assert after.not_valid_after_utc - before.not_valid_after_utc == 300 * DAY
        assert after.serial_number != before.serial_number

    def test_another_mesh_replaces_all_of_it(self, tmp_path: Path) -> None:
        held = member()
        write_tls(held, tmp_path, NOW)
        other = from_secret(held.identity, SECRET, "another")
        assert write_tls(other, tmp_path, NOW)
        assert (tmp_path / "ca.pem").read_bytes() == other.ca
        server_context(tmp_path)
        client_context(tmp_path)

    def test_a_damaged_certificate_is_made_anew(self, tmp_path: Path) -> None:
        held = member()
        write_tls(held, tmp_path, NOW)
        (tmp_path / "cert.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA")
        assert write_tls(held, tmp_path, NOW)
        server_context(tmp_path)

    def test_a_wrong_clock_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="clock"):
            write_tls(member(), tmp_path, datetime(1970, 1, 1, tzinfo=UTC))
        assert list(tmp_path.iterdir()) == []

    def test_a_guest_keeps_what_it_was_given(self, tmp_path: Path) -> None:
        """A node without the secret cannot make certificates; it uses the one it has."""
        import dataclasses

        held = member()
        assert held.authority is not None
        given = node_certificate(held.authority, held.identity.public_key, NOW)
        guest = dataclasses.replace(held, authority=None, certificate=given)
        write_tls(guest, tmp_path, NOW)
        assert (tmp_path / "cert.pem").read_bytes() == given
        empty = dataclasses.replace(guest, certificate=b"")
        with pytest.raises(UserError, match="admit it again"):
            write_tls(empty, tmp_path / "other", NOW)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match="cannot be written"):
            write_tls(member(), tmp_path / "file/tls", NOW)

    @pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem"])
    def test_missing_or_damaged_files_are_said(self, tmp_path: Path, name: str) -> None:
        write_tls(member(), tmp_path, NOW)
        (tmp_path / name).write_bytes(b"nonsense")
        for make in (server_context, client_context):
            with pytest.raises(UserError, match="restart meshd"):
                make(tmp_path)
        (tmp_path / name).unlink()
        for make in (server_context, client_context):
            with pytest.raises(UserError, match="cannot be used: No such file"):
                make(tmp_path)

    def test_a_key_of_another_node_is_said(self, tmp_path: Path) -> None:
        write_tls(member(), tmp_path, NOW)
        (tmp_path / "key.pem").write_bytes(member().identity.pem)
        with pytest.raises(UserError, match="cannot be used"):
            server_context(tmp_path)


def test_other_errors_are_not_explained_by_certificates() -> None:
    assert handshake_problem(ConnectionRefusedError("refused")) == ""
    assert handshake_problem(TimeoutError()) == ""
