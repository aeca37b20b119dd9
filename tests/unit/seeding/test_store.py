"""The cache's folder: adopted, checked, evicted, and shared by several processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from meshd.seeding.manifest import ManifestError, decode, encode
from meshd.seeding.namer import Stored
from meshd.seeding.quota import Disk, Quota
from meshd.seeding.store import Store, StoreError
from meshd.seeding.tensor_list import SeedTensor

A, B = "a" * 16, "b" * 16
NAMES = tuple(f"blk.{layer}.ffn_up.weight" for layer in range(4))
TENSORS = tuple(SeedTensor(name, n, 0, 100 * n, 10) for n, name in enumerate(NAMES))


class World:
    """A store whose disk and clock a test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = Disk(1 << 20, 1 << 19)
        self.now_s = 1000.0
        self.store = self.another()
        self.store.make()

    def another(self) -> Store:
        return Store(
            self.folder, Quota(0.5, 0.1), lambda _: self.disk, clock=lambda: self.now_s
        )  # fmt: skip

    def adopt(self, number: int, fingerprint: str = A, content: bytes = b"") -> str:
        content = content or f"content {number:2}".encode()
        name = hashlib.sha256(content).hexdigest()[:16]
        path = self.store.work / name
        path.write_bytes(content)
        self.store.begin(fingerprint, f"model {fingerprint[0]}", TENSORS)
        stored = Stored(path, len(content), hashlib.sha256(content).hexdigest())
        return self.store.adopt(fingerprint, NAMES[number], stored).cache_name

    def file(self, name: str) -> Path:
        return self.folder / "rpc" / name

    def files(self) -> set[str]:
        return {path.name for path in (self.folder / "rpc").iterdir()}

    def known(self, fingerprint: str = A) -> set[str]:
        manifest = self.another().manifest(fingerprint)
        return set(manifest.blobs) if manifest else set()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "rpc-cache")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def rewrite(path: Path) -> None:
    about = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns + 1))


def link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("damage", "why"),
    [(append, "has 11 bytes"), (rewrite, "was written to"), (link, ""), (Path.unlink, "was gone")],
)
def test_a_file_that_is_not_as_it_was_left_is_removed_and_forgotten(
    world: World, damage: Callable[[Path], None], why: str
) -> None:
    first, second = world.adopt(0), world.adopt(1)
    assert world.store.check() == ()
    damage(world.file(first))
    (finding,) = world.store.check()
    assert finding.cache_name == first
    assert why in finding.why
    assert world.files() == {second}
    assert world.known() == {NAMES[1]}
    assert world.store.check() == ()


def test_a_stranger_does_not_stay(world: World) -> None:
    name = world.adopt(0)
    world.file("0123456789abcdef").write_bytes(b"trust me")
    world.file("sub").mkdir()
    assert world.store.check() == (), "no wish has lost anything"
    assert world.files() == {name}


def test_two_models_with_the_same_content(world: World) -> None:
    name = world.adopt(0, A, b"same tensor")
    assert world.adopt(2, B, b"same tensor") == name
    assert world.store.check() == ()
    assert len(world.store.held()) == 1
    append(world.file(name))
    assert len(world.store.check()) == 1
    assert world.known(A) == world.known(B) == set()


def test_content_that_rotted_under_another_model_is_replaced(world: World) -> None:
    name = world.adopt(0, A, b"same tensor")
    append(world.file(name))
    world.adopt(2, B, b"same tensor")
    assert world.file(name).read_bytes() == b"same tensor"
    assert world.known(B) == {NAMES[2]}


def test_room_is_made_by_what_was_used_long_ago(world: World) -> None:
    names = []
    for number in range(4):
        world.now_s = 1000 + number
        names.append(world.adopt(number))
    world.now_s = 2000
    world.store.used({names[0]})
    world.disk = Disk(80, 40)  # half of it, and it holds 40
    world.store.make_room(15, {names[1]})
    assert world.files() == {names[0], names[1]}
    with pytest.raises(StoreError, match="make room"):
        world.store.make_room(31, {names[1]})
    assert world.files() == {names[0], names[1]}, "nothing goes for what cannot be"


def test_verifying_finds_what_size_and_time_do_not_show(world: World) -> None:
    name = world.adopt(0)
    about = world.file(name).stat()
    assert world.store.verify(name, lambda _: None)
    world.file(name).write_bytes(b"c0ntent  0")
    os.utime(world.file(name), ns=(about.st_atime_ns, about.st_mtime_ns))
    assert world.store.check() == ()
    assert not world.store.verify(name, lambda _: None)
    assert world.files() == set()
    assert world.known() == set()


def test_an_unclean_end_is_seen_and_partial_files_go(world: World) -> None:
    name = world.adopt(0)
    assert not world.store.open()
    partial = world.store.partial(A)
    partial.mkdir(parents=True)
    (partial / "half").write_bytes(b"half")
    with world.store.work_folder() as held:
        abandoned = world.store.work / "abandoned"
        abandoned.mkdir()
        later = world.another()
        assert later.open(), "the first was never closed"
        assert held.exists(), "its process still runs"
        assert not abandoned.exists()
    assert not partial.exists()
    stalest = later.stalest()
    assert stalest is not None
    assert (stalest.cache_name, stalest.verified_s) == (name, 0)
    later.close()
    assert not world.another().open()


def test_a_process_sees_what_another_wrote(world: World) -> None:
    other = world.another()
    assert other.manifest(A) is None
    world.adopt(0)
    first = other.manifest(A)
    assert first is not None
    assert set(first.blobs) == {NAMES[0]}
    world.adopt(1)
    second = other.manifest(A)
    assert second is not None
    assert set(second.blobs) == set(NAMES[:2])


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"fingerprint": "../../etc"},
        {"tensors": "none"},
        {"blobs": {"t": {"cache_name": "../x"}}},
    ],
)
def test_a_manifest_that_lies_is_of_no_use(world: World, change: dict[str, object]) -> None:
    world.adopt(0)
    path = world.store.manifest_path(A)
    said = json.loads(path.read_bytes())
    with pytest.raises(ManifestError):
        decode(json.dumps(said | change).encode())
    path.write_bytes(json.dumps(said | change).encode())
    assert world.store.check() == ()
    assert world.files() == set(), "what no manifest knows is a stranger"


def test_a_manifest_names_no_file_outside(world: World) -> None:
    world.adopt(0)
    manifest = world.store.manifest(A)
    assert manifest is not None
    text = encode(manifest).decode()
    name = manifest.blobs[NAMES[0]].cache_name
    with pytest.raises(ManifestError):
        decode(text.replace(name, "../../../etc/pw").encode())


def test_a_fingerprint_becomes_a_path_only_if_it_is_one(world: World) -> None:
    with pytest.raises(StoreError, match="is no fingerprint"):
        world.store.begin("../../x", "m", TENSORS)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be kept"):
        Store(tmp_path / "file/rpc-cache").open()
