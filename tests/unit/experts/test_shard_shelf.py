"""Shards' files: kept as long as they are right, wished, or there is room."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.experts import shard_note
from meshd.experts.shard_note import Figure, NoteError, ShardNote
from meshd.experts.shard_shelf import STAYS_S, ShardShelf
from meshd.quality import Fidelity
from meshd.seeding.quota import Disk

MODEL = "f" * 16
A, B, C = "a" * 24, "b" * 24, "c" * 24
DAY_S = 86_400


@dataclass(frozen=True)
class Written:
    path: Path
    size_bytes: int
    sha256: str


class World:
    """A shelf on a disk of 100 kB, of which nothing else takes any."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.files, self.notes = folder / "shards", folder / "experts/shards"
        self.total = 100_000
        self.others = 0
        self.shelf = ShardShelf(self.files, self.notes, self.disk, lambda: self.now_s)
        self.shelf.make()

    def disk(self, _: Path) -> Disk:
        held = sum(path.stat().st_size for path in self.files.iterdir())
        return Disk(self.total, self.total - held - self.others)

    def put(self, key: str, size_bytes: int = 1000) -> ShardNote:
        data = os.urandom(size_bytes)
        self.shelf.path(key).write_bytes(data)
        written = Written(self.shelf.path(key), size_bytes, hashlib.sha256(data).hexdigest())
        return self.shelf.adopt(key, MODEL, written)

    @property
    def here(self) -> set[str]:
        return {path.name.removesuffix(".gguf") for path in self.files.iterdir()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def nothing(_: int) -> None: ...


def test_engines_may_read_what_lies_here(world: World) -> None:
    before = os.umask(0o077)
    try:
        world.put(A)
        world.shelf.make()
    finally:
        os.umask(before)
    assert world.files.stat().st_mode & 0o777 == 0o755
    assert world.shelf.path(A).stat().st_mode & 0o777 == 0o644


def test_what_was_left_is_found_again(world: World) -> None:
    note = world.put(A)
    figure = Figure("ab" * 32, Fidelity("prose", 0.9, 1.1, 0.2))
    world.shelf.remember(replace(note, figures=(figure,)))
    again = ShardShelf(world.files, world.notes, world.disk, lambda: world.now_s)
    (found,) = again.notes()
    assert found == replace(note, figures=(figure,))
    assert again.verify(found, nothing)


@pytest.mark.parametrize(
    "harm",
    [
        lambda world: world.shelf.path(A).write_bytes(b"x" * 1000),
        lambda world: world.shelf.path(A).write_bytes(b"short"),
        lambda world: world.shelf.path(A).unlink(),
        lambda world: (world.notes / f"{A}.json").write_bytes(b"{}"),
        lambda world: (world.notes / f"{A}.json").write_bytes(b"[" * 100_000),
        lambda world: (world.notes / f"{A}.json").write_bytes(shard_note.encode(world.put(B))),
    ],
)
def test_what_was_touched_is_no_shard(world: World, harm: Callable[[World], object]) -> None:
    world.put(A)
    os.utime(world.shelf.path(A), ns=(1, 1))
    note = world.shelf.note(A)
    assert note is None  # another time
    world.put(A)
    harm(world)
    assert world.shelf.note(A) is None
    assert A not in world.here
    assert not (world.notes / f"{A}.json").exists()


def test_a_flipped_bit_is_found_when_it_is_read(world: World) -> None:
    note = world.put(A)
    path = world.shelf.path(A)
    about = path.stat()
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert world.shelf.note(A) == note
    assert not world.shelf.verify(note, nothing)
    assert world.here == set()


@pytest.mark.parametrize("key", ["", "../../etc/passwd", "a/b", "A" * 24, "a" * 65, "a\n"])
def test_a_key_that_is_none_names_no_file(world: World, key: str) -> None:
    with pytest.raises(UserError, match="no key"):
        world.shelf.path(key)


def test_what_was_used_longest_ago_makes_room(world: World) -> None:
    for key in (A, B, C):
        world.put(key, 30_000)
        world.now_s += 1
    world.shelf.used(A)
    world.shelf.make_room("d" * 24, 20_000, {C})
    assert world.here == {A, C}


def test_what_is_wished_or_served_stays_and_the_refusal_says_how_much_there_is(
    world: World,
) -> None:
    world.put(A, 60_000)
    world.put(B, 20_000)
    with pytest.raises(UserError, match=r"needs 0\.00 GB more in .*make room"):
        world.shelf.make_room(C, 60_000, {A})
    assert world.here == {A, B}
    world.shelf.make_room(C, 30_000, {A})
    assert world.here == {A}
    world.others = 20_000
    with pytest.raises(UserError):
        world.shelf.make_room(C, 30_000, {A})


def test_what_is_half_done_counts_for_its_own_shard_and_goes_for_another(world: World) -> None:
    half = world.files / f".{A}.gguf.part"
    half.write_bytes(b"x" * 65_536)
    os.sync()
    world.shelf.make_room(A, 90_000, set())
    assert half.exists()
    world.shelf.make_room(B, 90_000, set())
    assert not half.exists()


def test_what_was_not_wished_for_a_day_goes_beyond_a_fifth_of_the_disk(world: World) -> None:
    world.put(A, 10_000)
    world.put(B, 15_000)
    (world.files / f".{C}.gguf.part").write_bytes(b"x")
    os.utime(world.files / f".{C}.gguf.part", (world.now_s, world.now_s))
    world.shelf.tidy(set())
    assert world.here == {A, B, f".{C}.gguf.part"}
    world.now_s += STAYS_S + 1
    world.shelf.used(B)
    world.shelf.tidy(set())
    assert world.here == {B}
    world.put(A, 10_000)
    world.now_s += STAYS_S + 1
    world.shelf.tidy({A, B})
    assert world.here == {A, B}


@given(data=st.data())
def test_a_note_with_any_byte_changed_is_refused_or_the_same_kind(data: st.DataObject) -> None:
    note = ShardNote(A, MODEL, 5, "ab" * 32, 7, 8, 9, (
        Figure("cd" * 32, Fidelity("prose", 0.9, 1.1, 0.2)),
    ))  # fmt: skip
    text = bytearray(shard_note.encode(note))
    assert shard_note.decode(bytes(text), A) == note
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255))
    try:
        found = shard_note.decode(bytes(text), A)
    except NoteError:
        return
    assert (found.key, found.version) == (A, note.version)
