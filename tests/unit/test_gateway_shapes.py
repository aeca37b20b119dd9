"""Errors, headers and addresses: small pure things that clients see."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from meshd.errors import UserError
from meshd.gateway import headers, openai_error
from meshd.gateway.listen import Address, Sockets, inherited_sockets, open_sockets, parse_address
from meshd.gateway.openai_error import ApiError, from_upstream
from meshd.gateway.routes import ModelState, Route, RoutingTable


@given(
    st.integers(400, 599),
    st.binary(max_size=300) | st.text().map(lambda t: t.encode("utf-8", "replace")),
)
def test_whatever_an_engine_writes_has_openais_shape(status: int, text: bytes) -> None:
    error = from_upstream(status, text)
    shape = json.loads(error.body())["error"]
    assert error.status == status
    assert shape["message"]
    assert isinstance(shape["type"], str)
    assert shape["code"] is None or isinstance(shape["code"], str)
    assert shape["param"] is None or isinstance(shape["param"], str)


@given(st.dictionaries(st.sampled_from(["message", "type", "param", "code", "n_ctx"]),
                       st.none() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
                       | st.lists(st.integers())))  # fmt: skip
def test_so_has_whatever_is_in_its_error_object(fields: dict[str, object]) -> None:
    shape = json.loads(from_upstream(500, json.dumps({"error": fields}).encode()).body())["error"]
    assert isinstance(shape["message"], str)
    assert isinstance(shape["type"], str)
    assert shape["code"] is None or isinstance(shape["code"], str)
    assert shape.get("n_ctx") == fields.get("n_ctx")


def test_an_error_event_is_one_event_even_with_newlines_in_it() -> None:
    event = ApiError(500, "a\n\nb\r\nc").event()
    assert event.count(b"\n") == 2
    assert json.loads(event.removeprefix(b"data: "))["error"]["message"] == "a\n\nb\r\nc"


def test_the_list_of_known_models_is_bounded() -> None:
    routes = tuple(Route(f"model-{number:05}", ModelState.READY) for number in range(5000))
    error = openai_error.unknown_model("x" * 100_000, RoutingTable(routes=routes))
    assert len(error.message) < 2000
    assert "and 4950 more" in error.message


@given(st.text(max_size=200))
def test_a_request_id_is_always_fit_for_a_log(given_id: str) -> None:
    found = headers.request_id({headers.REQUEST_ID: given_id})
    assert found.isascii()
    assert 0 < len(found) <= 128
    assert not set(found) & set(' "\n\r\t\\')


def test_headers_named_by_connection_are_left_out() -> None:
    raw = CIMultiDict([("connection", "close, X-A"), ("x-a", "1"), ("X-B", "2"), ("TE", "x")])
    assert dict(headers.to_client(CIMultiDictProxy(raw))) == {"X-B": "2"}


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9337", Address("127.0.0.1", 9337)),
        ("[::1]:80", Address("::1", 80)),
        ("localhost:0", Address("localhost", 0)),
        ("*:9337", Address("", 9337)),
        (" [fe80::1%lo]:1 ", Address("fe80::1%lo", 1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9337", ":9337", "::1:80", "[::1]", "h:", "h:x", "h:65536", "h:-1", "[h]:1", "h:²"]
)
def test_what_is_no_address_is_told_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match="is not an address") as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)


def test_both_families_can_share_a_port() -> None:
    try:
        first = open_sockets([Address("127.0.0.1", 0), Address("::1", 0)])
    except UserError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    port = first[0].getsockname()[1]
    for listener in first:
        listener.close()
    both = open_sockets([Address("", port)])
    assert {listener.getsockname()[1] for listener in both} == {port}
    assert len(both) == 2
    for listener in both:
        listener.close()


def test_an_address_in_use_is_told_and_leaves_no_socket_open() -> None:
    taken = open_sockets([Address("127.0.0.1", 0)])
    port = taken[0].getsockname()[1]
    with pytest.raises(UserError, match="Address already in use"):
        open_sockets([Address("127.0.0.1", 0), Address("127.0.0.1", port)])
    taken[0].close()


@pytest.mark.parametrize("environment", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
                                         {"LISTEN_PID": "7", "LISTEN_FDS": "x"}])  # fmt: skip
def test_sockets_meant_for_another_process_are_not_taken(environment: dict[str, str]) -> None:
    environment["LISTEN_FDNAMES"] = "a"
    assert inherited_sockets(environment, 7) == Sockets()
    assert environment == {}
