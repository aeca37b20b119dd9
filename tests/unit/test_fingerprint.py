from __future__ import annotations

from pathlib import Path

import pytest

from meshd.models.fingerprint import HEAD_BYTES, SAMPLE_BYTES, fingerprint

SIZE = 5 * HEAD_BYTES


@pytest.fixture
def model(tmp_path: Path) -> Path:
    file = tmp_path / "a.gguf"
    file.write_bytes(bytes(range(256)) * (SIZE // 256))
    return file


def test_a_copy_under_another_name_is_the_same(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "b.gguf"
    copy.write_bytes(model.read_bytes())
    assert fingerprint([copy]) == fingerprint([model])


@pytest.mark.parametrize("place", [0, HEAD_BYTES - 1, SIZE - 1, SIZE - SAMPLE_BYTES])
def test_other_content_is_another(model: Path, place: int) -> None:
    before = fingerprint([model])
    content = bytearray(model.read_bytes())
    content[place] ^= 1
    model.write_bytes(content)
    assert fingerprint([model]) != before


def test_a_requantised_model_of_the_same_size_is_another(model: Path) -> None:
    before = fingerprint([model])
    content = model.read_bytes()
    model.write_bytes(content[:HEAD_BYTES] + bytes(SIZE - HEAD_BYTES))
    assert fingerprint([model]) != before


def test_truncation_and_parts_count(model: Path) -> None:
    whole = fingerprint([model])
    assert fingerprint([model, model]) != whole
    model.write_bytes(model.read_bytes()[:-1])
    assert fingerprint([model]) != whole


def test_empty_and_missing(tmp_path: Path) -> None:
    empty = tmp_path / "e.gguf"
    empty.touch()
    assert len(fingerprint([empty])) == 16
    with pytest.raises(FileNotFoundError):
        fingerprint([tmp_path / "no.gguf"])
