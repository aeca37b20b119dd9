"""The kinds of text: what is shipped, and what a user's file gives."""

from __future__ import annotations

import hashlib
import os
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.errors import UserError
from meshd.experts.texts import (
    BLOCK_BYTES,
    HALF_BYTES,
    LEAST_BYTES,
    MOST_BYTES,
    SHIPPED,
    calibration_digest,
    digest_of,
    texts_of,
)

ROOT = Path(__file__).resolve().parents[3]


def paragraphs(size_bytes: int) -> str:
    """Each is there once, and has 90 characters."""
    count = size_bytes // 90 + 1
    hashes = (hashlib.sha256(b"%d" % number).hexdigest() for number in range(count))
    return "".join(f"Paragraph {number:>8} {one}.....\n\n" for number, one in enumerate(hashes))


def contents(text: str | None) -> str:
    assert text is not None
    return Path(text).read_text(encoding="utf-8")


def long_lines(path: str) -> set[str]:
    return {line.strip() for line in contents(path).splitlines() if len(line.strip()) >= 60}


def test_shipped_texts_are_ample_and_do_not_overlap(tmp_path: Path) -> None:
    texts = texts_of((), tmp_path)
    assert [text.domain for text in texts] == list(SHIPPED) == ["prose", "code"]
    assert list(tmp_path.iterdir()) == []
    trained_beside = long_lines(str(ROOT / "share/models/heldout.txt"))
    for text in texts:
        for path in (text.ranks, text.measures):
            assert 100_000 < Path(path).stat().st_size < 150_000
        ranks, measures = long_lines(text.ranks), long_lines(text.measures)
        assert len(ranks) > 300
        assert len(measures) > 300
        assert not ranks & measures
        assert not (ranks | measures) & trained_beside


def test_shipped_texts_are_in_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert shared["share/calibration"] == "share/meshd/calibration"


def test_a_users_file_is_halved(tmp_path: Path) -> None:
    whole = paragraphs(LEAST_BYTES)
    (tmp_path / "own.txt").write_text(whole)
    texts = texts_of((("own", str(tmp_path / "own.txt")),), tmp_path / "halves")
    assert [text.domain for text in texts] == ["prose", "code", "own"]
    ranks, measures = contents(texts[-1].ranks), contents(texts[-1].measures)
    assert ranks.startswith("Paragraph        0 ")
    parts = [set(half.split("\n\n")) - {""} for half in (ranks, measures)]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == set(whole.split("\n\n")) - {""}
    assert 0.8 < len(ranks) / len(measures) < 1.25
    # By turns, not first and last: both have something of the end.
    assert max(whole.index(one) for one in parts[0]) > len(whole) * 0.8
    assert max(whole.index(one) for one in parts[1]) > len(whole) * 0.8


def test_the_same_content_is_written_once_and_another_beside_it(tmp_path: Path) -> None:
    path, folder = tmp_path / "own.txt", tmp_path / "halves"
    path.write_text(paragraphs(LEAST_BYTES))
    first = texts_of((("own", str(path)),), folder)
    made = {one.name: one.stat().st_ino for one in folder.iterdir()}
    assert texts_of((("own", str(path)),), folder) == first
    assert {one.name: one.stat().st_ino for one in folder.iterdir()} == made
    # One that was damaged is written anew.
    Path(first[-1].ranks).write_text("else")
    assert "Paragraph" in contents(texts_of((("own", str(path)),), folder)[-1].ranks)
    path.write_text(paragraphs(LEAST_BYTES + 20_000))
    second = texts_of((("own", str(path)),), folder)
    assert second != first
    assert calibration_digest(second) != calibration_digest(first)
    assert len(list(folder.iterdir())) == 4


def test_old_halves_do_not_pile_up(tmp_path: Path) -> None:
    path, folder = tmp_path / "own.txt", tmp_path / "halves"
    path.write_text(paragraphs(LEAST_BYTES))
    folder.mkdir()
    for number in range(300):
        (folder / f"old.{number}.ranks.txt").write_text("x")
        os.utime(folder / f"old.{number}.ranks.txt", (number, number))
    text = texts_of((("own", str(path)),), folder)[-1]
    assert len(list(folder.iterdir())) == 256
    assert Path(text.ranks).exists()
    assert Path(text.measures).exists()


def test_of_a_large_file_both_halves_have_something_of_all(tmp_path: Path) -> None:
    whole = paragraphs(4 << 20)
    (tmp_path / "own.txt").write_text(whole)
    text = texts_of((("own", str(tmp_path / "own.txt")),), tmp_path)[-1]
    for half in (contents(text.ranks), contents(text.measures)):
        assert HALF_BYTES * 0.7 < len(half) <= HALF_BYTES
        places = [int(one.split()[1]) * 90 / len(whole) for one in half.split("\n\n") if one]
        counts = [sum(tenth <= place * 10 < tenth + 1 for place in places) for tenth in range(10)]
        assert min(counts) > len(places) / 20


def test_a_kind_of_a_shipped_name_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(paragraphs(LEAST_BYTES))
    texts = texts_of((("code", str(tmp_path / "own.txt")),), tmp_path / "halves")
    assert [text.domain for text in texts] == ["prose", "code"]
    assert Path(texts[1].ranks).parent == tmp_path / "halves"


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text(paragraphs(LEAST_BYTES), encoding="utf-8-sig")
    text = texts_of((("own", str(tmp_path / "own.txt")),), tmp_path)[-1]
    assert contents(text.ranks).startswith("Paragraph        0 ")


def test_what_is_no_text_is_refused_with_what_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"

    def refusal() -> UserError:
        with pytest.raises(UserError) as caught:
            texts_of((("own", str(path)),), tmp_path / "halves")
        said = caught.value
        assert said.message.startswith(f"calibration own: {path}: ")
        assert said.hint
        assert "\n" not in str(said)
        assert not (tmp_path / "halves").exists()
        return said

    assert "No such file" in refusal().message
    path.write_text("")
    assert "empty" in refusal().message
    assert "at least 64 KiB" in refusal().hint
    path.write_text(paragraphs(LEAST_BYTES // 2))
    assert "only 32." in refusal().message
    path.write_text(" \n" * LEAST_BYTES)
    assert "empty" in refusal().message
    path.write_text(paragraphs(1000) + " \n" * LEAST_BYTES)
    assert "only" in refusal().message
    path.write_bytes(paragraphs(LEAST_BYTES).encode() + b"\xff")
    assert "not UTF-8 at byte" in refusal().message
    path.write_bytes(paragraphs(LEAST_BYTES).encode() + b"\0")
    assert "NUL" in refusal().message
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    assert "more than 16 MiB" in refusal().message
    path.unlink()
    os.mkfifo(path)
    assert "no file" in refusal().message
    path.unlink()
    path.mkdir()
    assert "no file" in refusal().message


def test_the_digest_tells_contents_and_their_order(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("ab")
    other.write_text("c")
    both = digest_of([one, other])
    assert len(both) == 64
    assert digest_of([other, one]) != both
    one.write_text("a")
    other.write_text("bc")
    assert digest_of([one, other]) != both


@settings(max_examples=30)
@given(st.text(st.sampled_from("äß€😀 \nabcdefgh"), min_size=1, max_size=400), st.integers(0, 3))
def test_wherever_it_is_cut_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, seed: str, shift: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    unit = seed + "äöü" + "x" * shift
    whole = unit * (2 * LEAST_BYTES // len(unit.encode()) + 1)
    (folder / "own.txt").write_bytes(whole.encode())
    text = texts_of((("own", str(folder / "own.txt")),), folder)[-1]
    ranks, measures = (Path(one).read_bytes() for one in (text.ranks, text.measures))
    # Each block is whole characters: both halves decode.
    assert len(ranks.decode()) + len(measures.decode()) == len(whole)
    assert abs(len(ranks) - len(measures)) <= BLOCK_BYTES * 16
