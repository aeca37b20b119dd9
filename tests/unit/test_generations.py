from __future__ import annotations

import stat
from pathlib import Path

import pytest

from meshd.config.load import SourceFile
from meshd.files import write_atomically
from meshd.generations import GenerationStore, previous


def files(text: str) -> tuple[SourceFile, ...]:
    return (SourceFile("/etc/mesh/mesh.yaml", text),)


def test_saves_and_finds_newest_first(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "generations")
    store.save(files("a"), now_s=1.0, summary="one")
    store.save(files("b"), now_s=2.0)
    found = store.newest_first()
    assert [(g.number, g.files[0].text) for g in found] == [(2, "b"), (1, "a")]
    assert found[1].summary == "one"


def test_the_same_files_make_no_new_generation(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    first = store.save(files("a"), now_s=1.0)
    assert store.save(files("a"), now_s=2.0) == first
    assert len(store.newest_first()) == 1


def test_only_the_newest_are_kept_and_numbers_go_on(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path, kept=3)
    for number in range(8):
        store.save(files(str(number)), now_s=float(number))
    assert [g.number for g in store.newest_first()] == [8, 7, 6]


def test_a_damaged_generation_is_passed_over(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    store.save(files("a"), now_s=1.0)
    store.save(files("b"), now_s=2.0)
    (tmp_path / "00000002.json").write_bytes(b'{"number": 2, "saved')
    assert [g.number for g in store.newest_first()] == [1]


def test_only_the_owner_can_read_a_generation(tmp_path: Path) -> None:
    GenerationStore(tmp_path / "kept").save(files("a"), now_s=1.0)
    path = tmp_path / "kept/00000001.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_previous_is_the_newest_that_differs(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path)
    for text in ("a", "b"):
        store.save(files(text), now_s=1.0)
    generations = store.newest_first()
    assert previous(generations, files("b")) == generations[1]
    assert previous(generations, files("bad, on disk")) == generations[0]
    assert previous(generations, files("b"), number=2) == generations[0]
    assert previous(generations, files("b"), number=9) is None
    assert previous([], files("b")) is None


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_keeps_its_mode_when_asked_to(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_atomically(target, b"new", mode=None)
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    target.chmod(0o600)
    write_atomically(target, b"newer", mode=None)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
