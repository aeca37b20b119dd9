"""What is read out of a request's body, and what is put into it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.gateway.ask import read
from meshd.gateway.request_body import BadBodyError, with_model


def model_of(body: bytes) -> str:
    return read("/v1/chat/completions", body).model


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip
objects = st.dictionaries(st.text(), values, max_size=5)


@given(objects, st.text(), st.sampled_from([None, 1]), st.booleans())
def test_the_model_is_found_among_anything(
    fields: dict[str, object], model: str, indent: int | None, ascii_only: bool
) -> None:
    body = json.dumps({**fields, "model": model}, indent=indent, ensure_ascii=ascii_only)
    try:
        raw = body.encode()
    except UnicodeEncodeError:  # a lone surrogate has no bytes
        return
    assert model_of(raw) == model


@given(objects, st.text(st.characters(exclude_categories=["Cs"])))
def test_only_the_model_is_replaced(fields: dict[str, object], model: str) -> None:
    body = json.dumps({**fields, "model": "alias"}).encode()
    assert json.loads(with_model(body, model)) == {**fields, "model": model}


@given(st.binary(max_size=100))
def test_junk_is_a_bad_body_and_nothing_worse(junk: bytes) -> None:
    with pytest.raises(BadBodyError):
        model_of(junk)


def test_what_has_no_unicode_is_a_bad_body_too() -> None:
    with pytest.raises(BadBodyError):
        model_of(b'{"model":"\\ud800"}')
    with pytest.raises(BadBodyError):
        with_model(b'{"\\ud800":1,"model":"alias"}', "m")


def test_the_last_of_two_models_counts_as_it_does_in_the_engine() -> None:
    assert model_of(b'{"model":"a","model":"b"}') == "b"


@pytest.mark.parametrize("depth", [2_000, 1_000_000])
def test_deep_nesting_is_refused(depth: int) -> None:
    for tail in (b"", b"]" * depth + b"}"):
        with pytest.raises(BadBodyError, match="deeply"):
            model_of(b'{"model":"m","x":' + b"[" * depth + tail)
