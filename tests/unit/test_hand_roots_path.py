"""Links on the way to a folder of root's configuration: the brain's lead nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshd.units.roots_path import roots_path

NOBODY: tuple[int, ...] = ()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    for folder in ("state/models/sub", "data/sub", "home"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path / "state"


def mine() -> tuple[int, ...]:
    return (os.geteuid(),)


def real(path: Path, state: Path, roots: tuple[int, ...]) -> str:
    return roots_path(str(path), state, roots)


def test_without_links_a_path_is_itself_whether_it_is_there_or_not(state: Path) -> None:
    for path in (state / "models", state / "models/sub", state / "none/x.gguf", Path("/none/x")):
        assert real(path, state, NOBODY) == os.path.realpath(path)


def test_links_outside_of_the_state_folder_are_whoever_laid_them(state: Path) -> None:
    data = state.parent / "data"
    home = state.parent / "home"
    (home / "models").symlink_to(data)
    (home / "twice").symlink_to("models/../data/sub")
    (home / "deep").symlink_to("models")
    assert real(home / "models/sub", state, NOBODY) == str(data / "sub")
    assert real(home / "deep/sub/x.gguf", state, NOBODY) == str(data / "sub/x.gguf")
    assert real(home / "twice", state, NOBODY) == os.path.realpath(home / "twice")


@pytest.mark.parametrize("link", ["models", "models/sub/in", "models/x.gguf"])
def test_a_link_of_the_brain_s_is_not_followed_and_one_of_root_s_is(state: Path, link: str) -> None:
    secret = state.parent / "home"
    at = state / link
    if link == "models":
        (state / "models/sub").rmdir()
        at.rmdir()
    at.symlink_to(secret)
    assert real(at / "y", state, NOBODY) == str(at / "y")
    assert real(at / "y", state, mine()) == str(secret / "y")
    # Nor by a link of somebody else's that leads there.
    (state.parent / "data/way").symlink_to(at)
    assert real(state.parent / "data/way/y", state, NOBODY) == str(at / "y")


def test_the_state_folder_itself_may_be_moved(state: Path) -> None:
    state.rename(state.parent / "moved")
    state.symlink_to("moved")
    assert real(state / "models", state, NOBODY) == str(state.parent / "moved/models")


def test_links_in_a_circle_end(state: Path) -> None:
    (state.parent / "a").symlink_to("b")
    (state.parent / "b").symlink_to("a")
    assert real(state.parent / "a/x", state, NOBODY).endswith("/x")
