"""Files of logits are whole, undamaged, and of distributions, or they are refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from meshd.experts import logits_file
from meshd.experts.logits_file import (
    CHUNK_TOKENS,
    HEADER_BYTES,
    SCORED,
    TOKENS,
    Header,
    LogitsError,
    check,
    logits_bytes,
    seal,
)

VOCABULARY, CHUNKS = 7, 3


def as_written(vocabulary: int = VOCABULARY, chunks: int = CHUNKS) -> bytes:
    """As llama-perplexity writes it; see its `log_softmax`."""
    random = np.random.default_rng(1)
    tokens = random.integers(0, vocabulary, chunks * CHUNK_TOKENS, dtype=np.int32)
    rows = []
    for logits in random.normal(0, 6, (chunks * SCORED, vocabulary)):
        most, least = logits.max(), max(logits.min(), logits.max() - 16)
        log_sum = np.log(np.exp(logits - most).sum())
        scale = (most - least) / 65535
        numbers = np.where(logits > least, np.rint((logits - least) / scale), 0).astype("<u2")
        ends = struct.pack("<ff", scale, least - most - log_sum)
        rows.append(ends + numbers.tobytes() + b"\xaa\xaa" * (vocabulary % 2))
    header = struct.pack("<8siii", b"_logits_", CHUNK_TOKENS, vocabulary, chunks)
    return header + tokens.tobytes() + b"".join(rows)


WRITTEN = as_written()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "x.logits"
    file.write_bytes(WRITTEN)
    return file


def test_what_the_tool_wrote_is_sealed_and_found_right(path: Path) -> None:
    seal(path)
    header = check(path)
    assert header == check(path, vocabulary=VOCABULARY) == Header(VOCABULARY, CHUNKS)
    assert path.stat().st_size == header.file_bytes
    assert path.read_bytes().startswith(WRITTEN), "the tool reads it as before"
    found, begin = logits_file.begin_of(path)
    assert (found, begin) == (header, WRITTEN[: header.begin_bytes])


def test_an_even_vocabulary_and_a_row_of_equal_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "x"
    data = bytearray(as_written(8))
    row = Header(8, CHUNKS).begin_bytes
    data[row : row + 24] = struct.pack("<ff", 0, -np.log(8)) + bytes(16)
    path.write_bytes(data)
    seal(path)
    assert check(path).vocabulary == 8


def test_a_domain_takes_less_than_a_gigabyte() -> None:
    assert logits_bytes(4096, 8 * CHUNK_TOKENS) == 16_744_404 + 40, "as measured, and the trailer"
    assert logits_bytes(150_000) < 10**9
    assert logits_bytes(VOCABULARY, 5) == logits_bytes(VOCABULARY, 2 * CHUNK_TOKENS)
    assert logits_bytes(VOCABULARY, CHUNKS * CHUNK_TOKENS + 5) == len(WRITTEN) + 40
    assert TOKENS % CHUNK_TOKENS == 0


def test_what_was_not_finished_is_not_sealed(path: Path) -> None:
    for size in (0, 12, HEADER_BYTES, 5000, len(WRITTEN) - 1):
        path.write_bytes(WRITTEN[:size])
        with pytest.raises(LogitsError):
            seal(path)
        assert path.stat().st_size == size


def test_other_vocabularies_chunks_and_sizes_are_refused(path: Path) -> None:
    seal(path)
    with pytest.raises(LogitsError, match="vocabulary of 7 tokens, the model has 8"):
        check(path, vocabulary=8)
    with pytest.raises(LogitsError, match="3 chunks, 2 are wanted"):
        check(path, tokens=2 * CHUNK_TOKENS)
    sealed = path.read_bytes()
    for other in (sealed + b"x", sealed[:-1], sealed[:HEADER_BYTES], sealed[:3], b"", WRITTEN):
        path.write_bytes(other)
        with pytest.raises(LogitsError):
            check(path)


@pytest.mark.parametrize(
    ("begin", "why"),
    [
        (b"_logitz_" + struct.pack("<iii", 512, 7, 2), "no logits"),
        (b"_logits_" + struct.pack("<iii", 256, 7, 2), "chunks of 256"),
        (b"_logits_" + struct.pack("<iii", 512, -7, 2), "cannot be"),
        (b"_logits_" + struct.pack("<iii", 512, 7, -2), "cannot be"),
        (b"_logits_" + struct.pack("<iii", 512, 2**31 - 1, 2**31 - 1), "cannot be"),
    ],
)
def test_headers_that_cannot_be(path: Path, begin: bytes, why: str) -> None:
    path.write_bytes(begin + WRITTEN[HEADER_BYTES:])
    with pytest.raises(LogitsError, match=why):
        seal(path)
    with pytest.raises(LogitsError, match=why):
        logits_file.begin_of(path)


@pytest.mark.parametrize("token", [-1, VOCABULARY, 2**31 - 1])
def test_tokens_that_the_vocabulary_has_not(path: Path, token: int) -> None:
    data = bytearray(WRITTEN)
    data[HEADER_BYTES : HEADER_BYTES + 4] = struct.pack("<i", token)
    path.write_bytes(data)
    with pytest.raises(LogitsError, match="its vocabulary has not"):
        seal(path)


@pytest.mark.parametrize(
    ("scale", "least", "why"),
    [
        (np.nan, -3.0, "no numbers"),
        (1e-4, -np.inf, "no numbers"),
        (np.inf, -3.0, "no numbers"),
        (-1e-4, -3.0, "no numbers"),
        (1e-4, 0.5, "no numbers"),
        (0.0, -3.0, "add up"),
        (3e38, -3.0, "add up"),
    ],
)
def test_rows_that_are_no_distributions(path: Path, scale: float, least: float, why: str) -> None:
    """With a right checksum: made so, or computed by a broken engine."""
    data = bytearray(WRITTEN)
    place = Header(VOCABULARY, CHUNKS).begin_bytes + 300 * Header(VOCABULARY, CHUNKS).row_bytes
    data[place : place + 8] = struct.pack("<ff", scale, least)
    path.write_bytes(data)
    with pytest.raises(LogitsError, match=why):
        seal(path)


def test_a_check_can_be_given_up(path: Path) -> None:
    seal(path)
    with pytest.raises(LogitsError, match="given up"):
        check(path, stopped=lambda: True)


@given(some.integers(0, len(WRITTEN) + 39), some.integers(0, 7))
def test_a_flipped_bit_is_found(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "sealed.logits"
    if not path.exists():
        path.write_bytes(WRITTEN)
        seal(path)
    with path.open("r+b") as file:
        file.seek(at)
        was = file.read(1)
        file.seek(at)
        file.write(bytes([was[0] ^ 1 << bit]))
        file.flush()
        try:
            with pytest.raises(LogitsError):
                check(path)
        finally:
            file.seek(at)
            file.write(was)


def test_what_is_read_is_bounded(tmp_path: Path) -> None:
    """A header that promises much makes nobody read, or make room for, more than there is."""
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<8siii", b"_logits_", 512, 4_000_000, 12))
    os.truncate(path, Header(4_000_000, 12).file_bytes)
    with pytest.raises(LogitsError, match="add up"):
        check(path)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_one_chunk_by_itself_is_a_file_for_the_tool(path: Path, chunk: int) -> None:
    target = path.with_name("part")
    target.write_bytes(b"x" * 2 * len(WRITTEN))
    seal(path)
    logits_file.excerpt(path, chunk, target)
    whole, found = Header(VOCABULARY, CHUNKS), Header(VOCABULARY, 2)
    header, begin = logits_file.begin_of(target)
    assert header == found
    data, tokens = target.read_bytes(), 4 * CHUNK_TOKENS
    first = HEADER_BYTES + chunk * tokens
    assert begin[HEADER_BYTES:] == 2 * WRITTEN[first : first + tokens]
    rows = SCORED * whole.row_bytes
    first = whole.begin_bytes + chunk * rows
    assert data[found.begin_bytes :][:rows] == WRITTEN[first : first + rows]
    assert len(data) == found.written_bytes
    assert set(data[found.begin_bytes + rows :]) == {0}
