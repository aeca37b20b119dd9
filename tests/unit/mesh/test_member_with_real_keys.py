"""The same with Ed25519, the mesh's authority and real admissions, for both presets."""

from __future__ import annotations

from random import Random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from meshd.config.settings import Preset
from meshd.mesh.admission import Standing, authority
from meshd.mesh.credentials import MeshVerifier, NodeSigner
from meshd.mesh.envelope import revocation_text
from meshd.mesh.identity import of_key
from meshd.mesh.member import Member
from meshd.mesh.record import NodeRecord
from meshd.mesh.revocations import seal_revocation

OURS = authority(b"s" * 32, "mesh")
THEIRS = authority(b"t" * 32, "mesh")


def member_of(mesh: object, standing: Standing = Standing.NODE, preset: str = "lan") -> Member:
    identity = of_key(Ed25519PrivateKey.generate())
    signer = NodeSigner(identity, mesh.admit(identity.public_key, standing))  # type: ignore[attr-defined]
    verifier = MeshVerifier(mesh.public_key)  # type: ignore[attr-defined]
    member = Member(signer, verifier, 1, lambda: 100.0, Random(1), preset)
    member.session_up()
    member.publish(NodeRecord(id=member.id))
    return member


def tell(one: Member, other: Member) -> None:
    for effect in one.drain():
        other.heard(effect.data)


@pytest.mark.parametrize("preset", Preset)
def test_members_of_one_mesh_hear_each_other(preset: Preset) -> None:
    one, other = member_of(OURS, preset=preset), member_of(OURS, preset=preset)
    tell(one, other)
    assert {member.id for member in other.view().members} == {one.id, other.id}


def test_another_mesh_and_mere_clients_are_not_heard() -> None:
    here = member_of(OURS)
    tell(member_of(THEIRS), here)
    tell(member_of(OURS, Standing.CLIENT), here)
    assert [member.id for member in here.view().members] == [here.id]


def test_only_the_authority_revokes() -> None:
    one, other = member_of(OURS), member_of(OURS)
    tell(one, other)
    text = revocation_text(OURS.mesh_id, one.id)
    assert not other.revoke(seal_revocation(one.id, THEIRS.sign(text)))
    assert other.revoke(seal_revocation(one.id, OURS.sign(text)))
    assert [member.id for member in other.view().members] == [other.id]
    tell(other, one)
    assert "revoked" in one.problem
