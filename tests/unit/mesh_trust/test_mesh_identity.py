from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.mesh.identity import existing_identity, identity, is_id, node_id
from meshd.mesh.incarnation import MAX_INCARNATION, IncarnationStore

ALONE: dict[str, str] = {}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def key_file(state: Path) -> Path:
    return state / "identity/node.key"


def test_the_first_start_makes_a_key_that_stays(tmp_path: Path) -> None:
    assert existing_identity(tmp_path, ALONE) is None
    first = identity(tmp_path, ALONE)
    again = identity(tmp_path, ALONE)
    assert again.id == first.id == node_id(first.public_key)
    assert again.public_key == first.public_key
    assert mode_of(key_file(tmp_path)) == 0o600
    assert mode_of(key_file(tmp_path).parent) == 0o700
    assert [path.name for path in key_file(tmp_path).parent.iterdir()] == ["node.key"]


def test_ids_have_one_form_and_differ(tmp_path: Path) -> None:
    ids = {identity(tmp_path / str(number), ALONE).id for number in range(20)}
    assert len(ids) == 20
    assert all(is_id(one) for one in ids)


def test_an_id_never_changes_with_the_version() -> None:
    # Written into other nodes' configurations; SHA-256 of this text, computed elsewhere.
    import base64
    import hashlib

    key = bytes(range(32))
    expected = base64.b32encode(hashlib.sha256(b"meshd node 1\0" + key).digest())[:16]
    assert node_id(key) == expected.decode().lower()


@pytest.mark.parametrize(
    "text", ["", "a" * 15, "a" * 17, "A" * 16, "a" * 15 + "1", "a" * 16 + "\n"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_many_first_starts_at_once_agree_on_one_key(tmp_path: Path) -> None:
    ids: list[str] = []
    barrier = threading.Barrier(8)

    def start() -> None:
        barrier.wait(10)
        ids.append(identity(tmp_path, ALONE).id)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(ids) == 8
    assert len(set(ids)) == 1


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o644, 0o660, 0o602])
def test_a_key_that_others_can_open_is_refused(tmp_path: Path, mode: int) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).chmod(mode)
    with pytest.raises(UserError, match=r"lets others at it .*chmod 0600"):
        identity(tmp_path, ALONE)


def test_a_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).parent.chmod(0o770)
    with pytest.raises(UserError, match="replace the node's key"):
        identity(tmp_path, ALONE)


@pytest.mark.parametrize("data", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\n", b"\0" * 99])
def test_a_damaged_key_says_the_way_out_and_is_not_replaced(tmp_path: Path, data: bytes) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).write_bytes(data)
    with pytest.raises(UserError, match="restore it, or remove it"):
        identity(tmp_path, ALONE)
    assert key_file(tmp_path).read_bytes() == data


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    with pytest.raises(UserError, match="not an Ed25519 key"):
        identity(tmp_path, ALONE)


def test_a_key_under_a_password_is_refused(tmp_path: Path) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).write_bytes(
        ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
    )
    with pytest.raises(UserError, match="is not a private key that can be read"):
        identity(tmp_path, ALONE)


def test_a_pipe_in_the_place_of_the_key_does_not_hang(tmp_path: Path) -> None:
    key_file(tmp_path).parent.mkdir(mode=0o700)
    os.mkfifo(key_file(tmp_path), 0o600)
    with pytest.raises(UserError, match="is not a file"):
        identity(tmp_path, ALONE)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    identity(tmp_path, ALONE)
    key_file(tmp_path).write_bytes(b"A" * 10_000_000)
    with pytest.raises(UserError, match="more than 16 KiB"):
        identity(tmp_path, ALONE)


def test_a_state_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(UserError, match="cannot be"):
        identity(tmp_path / "state", ALONE)


def test_a_systemd_credential_wins(tmp_path: Path) -> None:
    own = identity(tmp_path / "state", ALONE)
    other = identity(tmp_path / "other", ALONE)
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "mesh.identity").write_bytes(other.pem)
    (folder / "mesh.identity").chmod(0o440)
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    assert identity(tmp_path / "state", environment).id == other.id
    (folder / "mesh.identity").unlink()
    assert identity(tmp_path / "state", environment).id == own.id


def test_a_thousand_broken_keys_are_refused_or_read(tmp_path: Path) -> None:
    good = identity(tmp_path, ALONE).pem
    chance = random.Random(3)
    refused = 0
    for _ in range(1000):
        data = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            where = chance.randrange(len(data))
            if chance.random() < 0.5:
                data[where] = chance.randrange(256)
            else:
                del data[where : where + chance.randint(1, 40)]
            data = data or bytearray(b"\0")
        key_file(tmp_path).write_bytes(data)
        try:
            assert is_id(identity(tmp_path, ALONE).id)
        except UserError:
            refused += 1
    assert refused > 800


class TestIncarnation:
    def test_it_rises_with_every_start(self, tmp_path: Path) -> None:
        seen = [IncarnationStore(tmp_path).next_incarnation() for _ in range(50)]
        assert seen == sorted(set(seen))
        assert mode_of(tmp_path / "identity/incarnation") == 0o600

    def test_a_lost_file_is_made_good_by_the_mesh(self, tmp_path: Path) -> None:
        last = [IncarnationStore(tmp_path).next_incarnation() for _ in range(9)][-1]
        (tmp_path / "identity/incarnation").unlink()
        store = IncarnationStore(tmp_path)
        assert store.next_incarnation() <= last
        store.remember(last)
        assert IncarnationStore(tmp_path).next_incarnation() > last

    def test_what_is_remembered_never_falls(self, tmp_path: Path) -> None:
        store = IncarnationStore(tmp_path)
        store.remember(100)
        store.remember(7)
        assert store.next_incarnation() == 101

    @pytest.mark.parametrize("absurd", [MAX_INCARNATION + 1, 2**64, -1])
    def test_an_absurd_number_is_passed_over(self, tmp_path: Path, absurd: int) -> None:
        store = IncarnationStore(tmp_path)
        before = store.next_incarnation()
        store.remember(absurd)
        assert store.next_incarnation() == before + 1

    @given(data=st.binary(max_size=64))
    def test_a_damaged_file_counts_as_lost(
        self, tmp_path_factory: pytest.TempPathFactory, data: bytes
    ) -> None:
        state = tmp_path_factory.mktemp("state")
        (state / "identity").mkdir()
        (state / "identity/incarnation").write_bytes(data)
        first = IncarnationStore(state).next_incarnation()
        assert 1 <= first <= MAX_INCARNATION
        if first < MAX_INCARNATION:
            assert IncarnationStore(state).next_incarnation() == first + 1

    def test_a_folder_that_cannot_be_made_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "identity").write_text("a file")
        with pytest.raises(UserError, match="cannot be"):
            IncarnationStore(tmp_path).next_incarnation()
