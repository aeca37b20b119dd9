from __future__ import annotations

from pathlib import Path

import pytest

from meshd.mesh.addresses import HostPort
from meshd.mesh.candidates import Candidate
from meshd.mesh.peers_file import merged, read_peers, write_peers

ID = "a" * 16


def node(number: int, *, core: bool = False) -> Candidate:
    letters = "abcdefghijklmnopqrstuvwxyz234567"
    name = "n" * 14 + letters[number // 32] + letters[number % 32]
    return Candidate(name, (HostPort("10.0.0.1", 1000 + number), HostPort("fd00::1", 9338)), core)


def test_what_is_written_reads_back_cores_first(tmp_path: Path) -> None:
    path = tmp_path / "mesh/peers.json"
    write_peers(path, [node(1), node(2, core=True)])
    assert read_peers(path) == (node(2, core=True), node(1))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_peers(path, [node(number) for number in range(500)])
    assert len(read_peers(path)) == 64
    assert len(merged(map(node, range(40)), map(node, range(20, 200)))) == 64


def test_of_now_comes_before_of_earlier() -> None:
    moved = Candidate(node(1).node, (HostPort("10.9.9.9", 1),), core=True)
    assert merged([moved], [node(1), node(2)]) == (moved, node(2))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"nonsense",
        b"{}",
        b'[{"id": 3}]',
        b"\xff\xfe",
        b'[{"id": "not an id", "addresses": ["10.0.0.1:9338"]}]',
        b'[{"id": "' + ID.encode() + b'", "addresses": ["10.0.0.1"]}]',
        b'[{"id": "' + ID.encode() + b'", "addresses": ["../../etc:1"]}]',
        b"[" * 100_000,
    ],
)
def test_a_damaged_file_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    assert read_peers(path) == ()
    assert read_peers(tmp_path / "none") == ()
