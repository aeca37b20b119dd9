"""What llama-perplexity says is read as it was meant, or not at all."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from meshd.experts.perplexity_output import MeasureError, fidelity, last_chunk, told
from meshd.quality import Fidelity

REAL = Path(__file__).resolve().parents[2] / "data/perplexity"
SHARD = (REAL / "shard.txt").read_text()
ITSELF = (REAL / "itself.txt").read_text()
CUT_OFF = (REAL / "cut-off.txt").read_text()
CHUNKS = 12
FOUND = fidelity(SHARD, "prose", CHUNKS)


def statistic(name: str) -> float:
    """What it said once more at the end."""
    (line,) = (line for line in SHARD.splitlines() if line.startswith(name))
    return float(line.partition(":")[2].split()[0])


def test_a_shards_figures_are_those_of_the_statistics() -> None:
    assert FOUND.domain == "prose"
    assert FOUND.top1 == pytest.approx(statistic("Same top p:") / 100, abs=1e-9)
    assert FOUND.perplexity_ratio == pytest.approx(statistic("Mean PPL(Q)/PPL(base)"), abs=2e-5)
    assert FOUND.kl == pytest.approx(statistic("Mean    KLD"), abs=6e-6)


def test_a_model_beside_itself_loses_nothing() -> None:
    found = fidelity(ITSELF, "code", CHUNKS)
    assert found == Fidelity("code", top1=1.0, perplexity_ratio=1.0, kl=0.0)


def test_an_end_that_was_not_said_is_not_needed() -> None:
    found = fidelity(CUT_OFF, "code", CHUNKS - 1)
    assert found == Fidelity("code", top1=1.0, perplexity_ratio=1.0, kl=0.0)
    with pytest.raises(MeasureError, match="11 of 12 chunks"):
        fidelity(CUT_OFF, "code", CHUNKS)


def test_nothing_is_found_before_the_last_row_that_counts_is_whole() -> None:
    end = re.search(r"(?m)^  11 .*\n", SHARD)
    assert end is not None
    for size in range(end.end()):
        assert not told(SHARD[:size], CHUNKS - 1)
        with pytest.raises(MeasureError):
            fidelity(SHARD[:size], "prose", CHUNKS - 1)
    assert told(SHARD[: end.end()], CHUNKS - 1)
    early = fidelity(SHARD[: end.end()], "prose", CHUNKS - 1)
    assert early == fidelity(SHARD, "prose", CHUNKS - 1)
    assert early != FOUND


@pytest.mark.parametrize(
    ("place", "instead", "why"),
    [
        (1, "nan", "no numbers"),
        (1, "-nan", "no numbers"),
        (1, "inf", "no numbers"),
        (1, "-9.0000", "no numbers"),
        (1, "0.0000", "cannot be"),
        (4, "nan", "11 of 12"),
        (4, "40.00000", "cannot be"),
        (7, "-nan", "11 of 12"),
        (7, "-0.00200", "cannot be"),
        (14, "nan", "11 of 12"),
        (14, "101.000", "cannot be"),
        (14, "-1.000", "11 of 12"),
        (14, "7.5", "11 of 12"),
        (0, "13", "11 of 12"),
        (0, "11", "11 of 12"),
    ],
)
def test_what_is_no_number_or_impossible_is_refused(place: int, instead: str, why: str) -> None:
    with pytest.raises(MeasureError, match=why):
        fidelity(with_word(place, instead), "prose", CHUNKS)


def with_word(place: int, instead: str) -> str:
    """The last row's words are: chunk, then figure, ± and uncertainty in turn, and the unit."""
    before, row, after = re.split(r"(?m)^(  12 .*)$", SHARD)
    words = list(re.finditer(r"\S+", row))
    begin, end = words[place].span()
    return f"{before}{row[:begin]}{instead}{row[end:]}{after}"


def test_a_little_less_than_nothing_is_rounding() -> None:
    assert fidelity(with_word(7, "-0.00090"), "prose", CHUNKS).kl == 0.0


def test_a_row_before_that_is_no_number_spoils_all() -> None:
    spoilt, count = re.subn(r"(?m)^(   7 +)\S+", r"\1nan", SHARD)
    assert count == 1
    with pytest.raises(MeasureError, match="no numbers"):
        fidelity(spoilt, "prose", CHUNKS)


@given(some.data())
def test_lines_that_are_missing_twice_or_elsewhere_give_no_wrong_number(
    data: some.DataObject,
) -> None:
    lines = SHARD.splitlines(keepends=True)
    picked = data.draw(some.lists(some.sampled_from(lines), max_size=2 * len(lines)))
    try:
        found = fidelity("".join(picked), "prose", CHUNKS)
    except MeasureError:
        return
    assert found == FOUND


@given(some.integers(0, len(SHARD)), some.integers(1, len(SHARD)))
def test_a_piece_that_is_missing_gives_no_wrong_number(first: int, length: int) -> None:
    """Unless digits are missing from the middle of a number, which no pipe does."""
    said = SHARD[:first] + "\n" + SHARD[first + length :]
    try:
        found = fidelity(said, "prose", CHUNKS)
    except MeasureError:
        return
    assert found == FOUND


@given(
    some.integers(0, len(SHARD) - 1),
    some.one_of(some.sampled_from("0123456789.-± \n%:nai"), some.characters()),
)
def test_a_wrong_character_is_no_crash_and_nothing_that_cannot_be(place: int, other: str) -> None:
    try:
        found = fidelity(SHARD[:place] + other + SHARD[place + 1 :], "prose", CHUNKS)
    except MeasureError:
        return
    assert 0 <= found.top1 <= 1
    assert 0 < found.perplexity_ratio < math.inf
    assert 0 <= found.kl < math.inf


@given(some.text(max_size=300))
def test_any_text_is_refused(text: str) -> None:
    assert not told(text, CHUNKS)
    with pytest.raises(MeasureError):
        fidelity(text, "prose", CHUNKS)


def test_how_far_it_is() -> None:
    assert last_chunk("") == 0
    assert last_chunk("0.02 minutes\n[1]93.1084,[2]134.6453,[12]9.1,[1") == 12
    rows = SHARD.splitlines(keepends=True)
    assert last_chunk("".join(rows[:7])) == 4
    assert last_chunk(SHARD) == CHUNKS
