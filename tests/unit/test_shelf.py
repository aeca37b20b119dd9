"""Which file a source means."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshd import paths
from meshd.errors import UserError
from meshd.models import shelf
from meshd.models.shelf import find, scan


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of shipped models of the test's own."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(paths, "shipped", lambda *parts: folder if parts == ("models",) else None)
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def put(folder: Path, *names: str) -> list[Path]:
    files = [folder / name for name in names]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def test_finds_a_path(models: Path, shipped: Path) -> None:
    (here, below) = put(models, "a.gguf", "org/b.gguf")
    assert find("a.gguf", [models]) == here
    assert find("org/b.gguf", [models]) == below
    assert find(str(here), []) == here


def test_the_first_folder_wins_and_the_shipped_come_last(
    tmp_path: Path, models: Path, shipped: Path
) -> None:
    other = tmp_path / "other"
    (first,) = put(other, "a.gguf")
    put(models, "a.gguf")
    (own,) = put(shipped, "a.gguf", "tiny.gguf")[:1]
    assert find("a.gguf", [other, models]) == first
    assert find("a*.gguf", [other, models]) == first
    assert find("a.gguf", []) == own
    assert find("tiny.gguf", [models, other]) == shipped / "tiny.gguf"


def test_a_glob_without_a_slash_looks_into_subfolders(models: Path) -> None:
    (file,) = put(models, "org/repo/qwen3-8b-q4_k_m.gguf")
    put(models, "org/repo/qwen3-8b-q8_0.gguf", "org/repo/notes.txt")
    assert find("*q4_k_m*", [models]) == file
    assert find("org/*/*q4*.gguf", [models]) == file
    assert find("**/*q4*.gguf", [models]) == file
    assert find(f"{models}/org/*/*q4*.gguf", []) == file
    with pytest.raises(UserError, match="no model"):
        find("org/*q4*.gguf", [models])


def test_a_glob_that_matches_several_names_them(models: Path) -> None:
    put(models, *(f"m{number}.gguf" for number in range(12)))
    with pytest.raises(UserError, match=r"matches 12 models .*m0\.gguf, m1\.gguf.* and 4 more"):
        find("m*.gguf", [models])


def test_a_split_is_one_model(models: Path) -> None:
    parts = put(models, *(f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)))
    assert find("big*.gguf", [models]) == parts[0]
    assert find("big-00002-of-00003.gguf", [models]) == parts[0]
    assert scan([models]) == (parts[0],)


def test_projectors_are_not_taken_for_models(models: Path) -> None:
    projector, model = put(models, "mmproj-gemma.gguf", "gemma.gguf")
    assert find("*gemma*.gguf", [models]) == model
    assert find("mmproj-*.gguf", [models]) == projector


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "empty"),
        ("a\0b", "no path"),
        ("../secret.gguf", "leaves the model folders"),
        ("org/../../x.gguf", "leaves the model folders"),
        ("missing.gguf", "no model missing.gguf in "),
        ("/nowhere/x.gguf", "no model at /nowhere/x.gguf"),
        ("/nowhere/*.gguf", "no model at"),
        ("folder", "is a folder"),
    ],
)
def test_says_why_not(source: str, said: str, models: Path) -> None:
    (models / "folder").mkdir()
    with pytest.raises(UserError, match=said):
        find(source, [models])


def test_scan_lists_each_file_once(tmp_path: Path, models: Path, shipped: Path) -> None:
    one, two = put(models, "a.gguf", "sub/b.gguf")
    put(models, "notes.txt", "c.gguf.part")
    (tiny,) = put(shipped, "tiny.gguf")
    (models / "link.gguf").symlink_to(one)
    (models / "loop").symlink_to(models)
    (models / "dangling.gguf").symlink_to(models / "gone")
    assert scan([models, models, tmp_path / "none"]) == (one, two, tiny)


def test_scanning_is_bounded(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "ENTRIES_MAX", 10)
    put(models, *(f"{number:03}.gguf" for number in range(50)))
    assert len(scan([models])) == 10
    deep = models.joinpath(*["d"] * (shelf.DEPTH_MAX + 1))
    put(deep, "deep.gguf")
    monkeypatch.setattr(shelf, "ENTRIES_MAX", 1000)
    assert deep / "deep.gguf" not in scan([models])
