"""Facts are remembered as long as the files stay as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshd.models import facts_cache
from meshd.models.facts import GgufFacts
from meshd.models.facts_cache import FactsCache
from meshd.models.gguf_facts import read_facts
from meshd.models.gguf_header import GgufError
from tests.unit.gguf_bytes import llama
from tests.unit.test_gguf_facts import parts_of


class CountingReader:
    def __init__(self) -> None:
        self.paths: list[Path] = []

    def __call__(self, path: Path) -> GgufFacts:
        self.paths.append(path)
        return read_facts(path)


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return llama().write(tmp_path / "model.gguf")


def test_a_second_look_reads_nothing_also_after_a_restart(
    tmp_path: Path, model: Path, reader: CountingReader
) -> None:
    store = tmp_path / "state" / "facts.json"
    first = FactsCache(store, read=reader)
    facts = first.facts(model)
    assert first.facts(model) == facts
    assert FactsCache(store, read=reader).facts(model) == facts
    assert len(reader.paths) == 1
    assert list(store.parent.iterdir()) == [store]


def test_a_changed_file_is_read_again(tmp_path: Path, model: Path, reader: CountingReader) -> None:
    cache = FactsCache(tmp_path / "facts.json", read=reader)
    assert len(cache.facts(model).layers) == 2
    llama(layers=3).write(model)
    assert len(cache.facts(model).layers) == 3
    os.utime(model, ns=(1, 1))
    cache.facts(model)
    assert len(reader.paths) == 3


def test_any_part_of_a_split_counts(tmp_path: Path, reader: CountingReader) -> None:
    parts = parts_of(tmp_path)
    cache = FactsCache(tmp_path / "facts.json", read=reader)
    cache.facts(parts[0])
    cache.facts(parts[2])
    assert len(reader.paths) == 1
    os.utime(parts[1], ns=(1, 1))
    cache.facts(parts[0])
    assert len(reader.paths) == 2
    parts[1].unlink()
    with pytest.raises(GgufError, match="missing"):
        cache.facts(parts[0])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b'{"format": "1", "entries": {}}', b"\xff\xfe", b"[" * 100_000],
)
def test_a_damaged_cache_is_begun_anew(
    content: bytes, tmp_path: Path, model: Path, reader: CountingReader
) -> None:
    store = tmp_path / "facts.json"
    store.write_bytes(content)
    assert FactsCache(store, read=reader).facts(model) == read_facts(model)
    assert FactsCache(store, read=reader).facts(model) == read_facts(model)
    assert len(reader.paths) == 1


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, model: Path, reader: CountingReader
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    cache = FactsCache(in_the_way / "facts.json", read=reader)
    assert cache.facts(model) == cache.facts(model)
    assert len(reader.paths) == 1


def test_what_is_broken_is_not_remembered(tmp_path: Path, reader: CountingReader) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    cache = FactsCache(tmp_path / "facts.json", read=reader)
    for _ in range(2):
        with pytest.raises(GgufError):
            cache.facts(model)
    llama().write(model)
    assert len(cache.facts(model).layers) == 2


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_cache, "_ENTRIES_MAX", 8)
    store = tmp_path / "facts.json"
    original = read_facts(llama().write(tmp_path / "model.gguf"))
    cache = FactsCache(store, read=lambda _: original)
    oldest = tmp_path / "0.gguf"
    for number in range(12):
        path = tmp_path / f"{number}.gguf"
        path.touch()
        cache.facts(path)
        cache.facts(oldest)  # in use, so it stays
    calls: list[Path] = []

    def read(path: Path) -> GgufFacts:
        calls.append(path)
        return original

    later = FactsCache(store, read=read)
    later.facts(oldest)
    later.facts(tmp_path / "11.gguf")
    assert calls == []
    later.facts(tmp_path / "1.gguf")
    assert len(calls) == 1
