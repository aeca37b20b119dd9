from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from meshd.mesh import admission
from meshd.mesh.admission import Standing, authority, standing
from meshd.mesh.credentials import Credentials, MeshVerifier, from_secret
from meshd.mesh.identity import is_id, node_id, of_key

SECRET = b"tqwf-bq5k-ks37-n2yc-vwzz-4g3a-6mfo-p7xd"
OURS = authority(SECRET, "mesh")
KEY = of_key(Ed25519PrivateKey.generate())


def member(secret: bytes = SECRET, name: str = "mesh") -> Credentials:
    return from_secret(of_key(Ed25519PrivateKey.generate()), secret, name)


def test_every_holder_of_the_secret_is_the_same_authority() -> None:
    again = authority(SECRET, "mesh")
    assert (again.public_key, again.mesh_id) == (OURS.public_key, OURS.mesh_id)
    assert again.admit(KEY.public_key) == OURS.admit(KEY.public_key)
    assert is_id(OURS.mesh_id)


def test_the_derivation_never_changes_with_the_version() -> None:
    """RFC 5869 by hand, so that nodes of two versions of meshd stay in one mesh."""
    import hashlib
    import hmac

    extracted = hmac.digest(b"meshd mesh 1", SECRET, hashlib.sha256)
    seed = hmac.digest(extracted, b"mesh" + b"\x01", hashlib.sha256)
    key = Ed25519PrivateKey.from_private_bytes(seed)
    assert key.public_key().public_bytes_raw() == OURS.public_key


@pytest.mark.parametrize(
    ("secret", "name"),
    [(SECRET, "mesh2"), (SECRET, ""), (SECRET[:-1] + b"e", "mesh"), (SECRET + b"m", "esh")],
)
def test_another_secret_or_name_is_another_mesh(secret: bytes, name: str) -> None:
    other = authority(secret, name)
    assert other.mesh_id != OURS.mesh_id
    assert standing(OURS.public_key, KEY.public_key, other.admit(KEY.public_key)) is None
    verifier = MeshVerifier(OURS.public_key)
    assert not verifier.admitted(KEY.public_key, other.admit(KEY.public_key))
    assert not verifier.verify_authority(other.sign(b"word"), b"word")


def test_members_believe_each_other() -> None:
    one, other = member(), member()
    assert one.mesh_id == other.mesh_id
    assert one.ca == other.ca
    assert one.node_id != other.node_id
    signature = one.signer.sign(b"what I say")
    assert other.verifier.admitted(one.signer.public_key, one.signer.admission)
    assert other.verifier.verify(one.signer.public_key, signature, b"what I say")
    assert other.verifier.node_id(one.signer.public_key) == one.signer.node_id
    assert one.authority is not None
    assert other.verifier.verify_authority(one.authority.sign(b"word"), b"word")


def test_an_admission_is_for_one_key() -> None:
    one, other = member(), member()
    assert not one.verifier.admitted(other.signer.public_key, one.signer.admission)


def test_a_client_may_not_publish() -> None:
    assert standing(OURS.public_key, KEY.public_key, OURS.admit(KEY.public_key)) is Standing.NODE
    only_asks = OURS.admit(KEY.public_key, Standing.CLIENT)
    assert standing(OURS.public_key, KEY.public_key, only_asks) is Standing.CLIENT
    assert not MeshVerifier(OURS.public_key).admitted(KEY.public_key, only_asks)
    promoted = bytes([Standing.NODE]) + only_asks[1:]
    assert standing(OURS.public_key, KEY.public_key, promoted) is None


def test_a_signature_of_one_kind_is_worth_nothing_as_another() -> None:
    """Nobody gets an admission by having the authority, or a node, sign something else."""
    claim = bytes([Standing.NODE]) + KEY.public_key
    as_word = bytes([Standing.NODE]) + OURS.sign(claim)
    assert standing(OURS.public_key, KEY.public_key, as_word) is None
    verifier = MeshVerifier(OURS.public_key)
    assert not verifier.verify(OURS.public_key, OURS.sign(b"x"), b"x")
    assert not verifier.verify_authority(admission.sign_entry(OURS.key, b"x"), b"x")
    assert not verifier.verify_authority(OURS.key.sign(b"x"), b"x")


@given(
    where=st.integers(0, admission.ADMISSION_BYTES - 1),
    change=st.integers(1, 255),
    key_where=st.integers(0, 31),
)
def test_any_changed_byte_spoils_an_admission(where: int, change: int, key_where: int) -> None:
    good = OURS.admit(KEY.public_key)
    bad = bytearray(good)
    bad[where] ^= change
    assert standing(OURS.public_key, KEY.public_key, bytes(bad)) is None
    other = bytearray(KEY.public_key)
    other[key_where] ^= change
    assert standing(OURS.public_key, bytes(other), good) is None


@given(key=st.binary(max_size=80), signature=st.binary(max_size=80), data=st.binary(max_size=20))
def test_no_bytes_are_believed_and_none_raise(key: bytes, signature: bytes, data: bytes) -> None:
    verifier = MeshVerifier(OURS.public_key)
    assert not verifier.admitted(key, signature)
    assert not verifier.admitted(KEY.public_key, signature)
    assert not verifier.verify(KEY.public_key, signature, data)
    assert not verifier.verify(key, signature, data)
    assert not verifier.verify_authority(signature, data)
    assert is_id(verifier.node_id(key))


def test_strangers_do_not_make_a_verifier_grow() -> None:
    verifier = MeshVerifier(OURS.public_key)
    for size in range(200):
        assert not verifier.admitted(bytes(size * 1000), bytes(size * 1000))
    remembered = verifier._standing.cache_info()
    assert remembered.currsize == 0
    for number in range(5000):
        assert not verifier.admitted(number.to_bytes(32), bytes(admission.ADMISSION_BYTES))
    full = verifier._standing.cache_info()
    assert full.maxsize is not None
    assert full.currsize <= full.maxsize < 5000


def test_a_node_without_the_secret_can_be_let_in() -> None:
    """As invitations will: all that it needs was made elsewhere, for its public key only."""
    holder, guest = member(), of_key(Ed25519PrivateKey.generate())
    assert holder.authority is not None
    given_out = holder.authority.admit(guest.public_key)
    signer = dataclasses.replace(holder.signer, identity=guest, admission=given_out)
    assert signer.node_id == node_id(guest.public_key)
    assert holder.verifier.admitted(signer.public_key, signer.admission)
    assert holder.verifier.verify(guest.public_key, signer.sign(b"hello"), b"hello")
