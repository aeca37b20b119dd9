"""Logits on disk: found again, bounded, and rid of what a crash left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from meshd.errors import UserError
from meshd.experts.logits_file import TOKENS
from meshd.experts.logits_store import FILES_MAX, PART_STAYS_S, LogitsStore
from meshd.seeding.quota import Disk, Quota

A, B, C = "a" * 16, "b" * 16, "c" * 16
PROSE, CODE = "1" * 64, "2" * 64


class World:
    """A disk of 1000 bytes of which a store may have 500, and a clock."""

    def __init__(self, folder: Path) -> None:
        self.now_s = 1_800_000_000.0
        self.folder = folder / "logits"
        self.store = LogitsStore(self.folder, self.disk, lambda: self.now_s, Quota(0.5, 0.05))
        self.store.open()

    def disk(self, folder: Path) -> Disk:
        return Disk(1000, 1000 - sum(one.stat().st_size for one in folder.iterdir()))

    def put(self, fingerprint: str, text: str, size: int) -> Path:
        self.now_s += 10
        path = self.store.path(fingerprint, text)
        path.write_bytes(b"x" * size)
        self.store.used(path)
        return path

    def left(self, name: str, age_s: float) -> Path:
        path = self.folder / name
        path.write_bytes(b"x" * 10)
        os.utime(path, (self.now_s - age_s,) * 2)
        return path


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_is_there_is_found_by_model_and_text(world: World) -> None:
    one, other = world.put(A, PROSE, 10), world.put(A, CODE, 10)
    third = world.put(B, CODE, 10)
    world.left(f"{B}-{PROSE}.part", 0)
    assert world.store.all() == {A: {PROSE: str(one), CODE: str(other)}, B: {CODE: str(third)}}


@pytest.mark.parametrize(
    ("fingerprint", "text"),
    [("../../../../x", PROSE), ("", PROSE), (A, "../x"), (A, PROSE + "/x"), (A.upper(), PROSE)],
)
def test_names_are_no_paths(world: World, fingerprint: str, text: str) -> None:
    with pytest.raises(UserError):
        world.store.path(fingerprint, text)


def test_what_a_crash_left_goes_and_what_was_fetched_stays_a_day(world: World) -> None:
    whole = world.put(A, PROSE, 10)
    fresh = world.left("0123.part", PART_STAYS_S - 60)
    gone = (
        world.left("0124.part", PART_STAYS_S + 60),
        world.left(f".{whole.name}.x1b2c3", 0),
        world.left(f"{A}-{CODE}-{TOKENS + 512}.logits", 0),
        world.left("something", 0),
    )
    world.store.open()
    assert {one.name for one in world.folder.iterdir()} == {whole.name, fresh.name}
    assert not any(one.exists() for one in gone)


def test_room_is_made_of_what_was_not_used_for_the_longest_time(world: World) -> None:
    old, needed, new = world.put(A, PROSE, 200), world.put(B, PROSE, 150), world.put(C, PROSE, 150)
    world.store.make_room(0)
    assert old.exists()
    world.now_s += 10
    world.store.used(old)
    world.store.make_room(100, keep={B})
    assert (old.exists(), needed.exists(), new.exists()) == (True, True, False)


def test_what_is_in_use_never_goes(world: World) -> None:
    used = world.put(A, PROSE, 300)
    also = world.put(A, CODE, 100)
    with pytest.raises(UserError, match=r"may be taken \(make room on this disk\)"):
        world.store.make_room(200, keep={A})
    assert used.exists()
    assert also.exists()
    world.store.make_room(100, keep={A})


def test_whose_logits_are_is_known_as_long_as_they_are_there(world: World) -> None:
    mine, theirs = world.store.path(A, PROSE), world.store.path(B, PROSE)
    assert world.store.origin(mine) is None
    world.store.comes(mine, "")
    world.store.comes(theirs, "n-other")
    world.put(A, PROSE, 200)
    world.put(B, PROSE, 200)
    world.store.open()
    assert (world.store.origin(mine), world.store.origin(theirs)) == ("", "n-other")
    world.store.make_room(200, keep={B})
    assert names(world) == {theirs.name, theirs.with_suffix(".node").name}
    theirs.with_suffix(".node").write_bytes(b"\xff" * 10)
    assert world.store.origin(theirs) is None
    theirs.unlink()
    world.store.open()
    assert names(world) == set()


def test_what_is_to_come_takes_the_place_of_what_lies_there(world: World) -> None:
    path = world.put(A, PROSE, 10)
    world.store.comes(path, "n-other")
    assert not path.exists()
    with pytest.raises(UserError, match="no node has such an id"):
        world.store.comes(path, "a\nb")
    assert world.store.origin(path) == "n-other"


def test_halves_count_and_are_the_first_to_go_when_old(world: World) -> None:
    half = world.left("0123.part", 3600)
    whole = world.put(A, PROSE, 490)
    world.store.make_room(10)
    assert not half.exists()
    assert whole.exists()


def test_there_are_never_many_files(world: World, tmp_path: Path) -> None:
    store = LogitsStore(tmp_path / "many", lambda _: Disk(10**9, 10**9), lambda: world.now_s)
    store.open()
    for number in range(FILES_MAX + 20):
        path = store.path(f"{number:016x}", PROSE)
        path.write_bytes(b"x")
        os.utime(path, (number, number))
    store.make_room(1)
    assert len(store.all()) == FILES_MAX
    assert f"{0:016x}" not in store.all()


@given(
    some.lists(some.tuples(some.sampled_from((A, B, C)), some.integers(1, 300)), max_size=6),
    some.integers(0, 600),
    some.sets(some.sampled_from((A, B, C))),
)
def test_room_is_made_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[str, int]],
    needed: int,
    keep: set[str],
) -> None:
    world = World(tmp_path_factory.mktemp("store"))
    for number, (fingerprint, size) in enumerate(files):
        world.put(fingerprint, f"{number:064x}", size)
    before = names(world)
    try:
        world.store.make_room(needed, keep)
    except UserError:
        assert names(world) == before, "nothing goes in vain"
        return
    assert {one for one in before if one[:16] in keep} <= names(world)
    assert sum(one.stat().st_size for one in world.folder.iterdir()) + needed <= 500


def names(world: World) -> set[str]:
    return {one.name for one in world.folder.iterdir()}
