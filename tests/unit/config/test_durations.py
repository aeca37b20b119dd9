import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config.durations import format_duration, parse_duration


@given(st.integers(0, 9_999_999))
def test_what_is_written_reads_back(seconds):
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"), [("0s", 0), ("90s", 90), ("5min", 300), ("2h", 7200), ("1d", 86400)]
)
def test_units(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "min", "-1s", "1.5h", "5m", "1s ", "99999999s"])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match="is not a time"):
        parse_duration(text)
