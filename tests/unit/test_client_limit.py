"""How long a client itself waits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from meshd.gateway.client_limit import HEADERS, client_limit_s


@pytest.mark.parametrize("name", HEADERS)
def test_each_header_counts_whatever_its_case(name: str) -> None:
    assert client_limit_s(CIMultiDict({name.lower(): "60"})) == 59.0


def test_the_shortest_counts_and_a_short_one_leaves_time_to_answer() -> None:
    assert client_limit_s({"X-Stainless-Timeout": "600", "X-Request-Timeout": "10"}) == 9.5
    assert client_limit_s({"X-Request-Timeout": "0.5"}) == pytest.approx(0.475)


@pytest.mark.parametrize("text", ["", "soon", "-1", "0", "nan", "inf", "1e999", "NOT_GIVEN"])
def test_what_is_no_time_is_passed_over(text: str) -> None:
    assert client_limit_s({"X-Request-Timeout": text}) == math.inf


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    assert client_limit_s({"X-Request-Timeout": text}) > 0
