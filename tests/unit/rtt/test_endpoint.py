"""Addresses from other nodes' records, whatever stands in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.rtt.endpoint import MAX_ADDRESSES, endpoints, parse


@pytest.mark.parametrize(
    ("text", "host", "port", "ip"),
    [
        ("10.0.0.7:9338", "10.0.0.7", 9338, "10.0.0.7"),
        ("[2001:DB8::0:7]:9338", "2001:DB8::0:7", 9338, "2001:db8::7"),
        ("[::ffff:10.0.0.7]:1", "::ffff:10.0.0.7", 1, "10.0.0.7"),
        ("box-7.lan:9338", "box-7.lan", 9338, ""),
        ("localhost:9338", "localhost", 9338, ""),
    ],
)
def test_addresses(text: str, host: str, port: int, ip: str) -> None:
    found = parse(text)
    assert found is not None
    assert (found.address, found.host, found.port, found.ip) == (text, host, port, ip)


@pytest.mark.parametrize(
    "text",
    ["", ":", "host", ":9338", "h:0", "h:65536", "h:٣", "::1:9338", "[10.0.0.7]:1", "[host]:1",
     "224.0.0.1:1", "[ff02::1]:1", "[fe80::1%eth0]:1", "[fe80::1%\0]:1",
     "0.0.0.0:1", "[::]:1", "a b:1", "-x:1", "h\n:1", "h\0:1",
     "x" * 300 + ":1"],
)  # fmt: skip
def test_what_is_no_single_machine_is_passed_over(text: str) -> None:
    assert parse(text) is None


@given(st.lists(st.text(max_size=60), max_size=12))
def test_any_text_gives_bounded_endpoints(addresses: list[str]) -> None:
    found = endpoints(addresses)
    assert len(found) <= MAX_ADDRESSES
    assert all(1 <= one.port <= 65535 for one in found)


def test_loopback_counts_only_where_a_peer_names_nothing_else() -> None:
    assert [one.ip for one in endpoints(["127.0.0.1:1", "[::1]:1"])] == ["127.0.0.1", "::1"]
    assert [one.ip for one in endpoints(["127.0.0.1:1", "10.0.0.7:1"])] == ["10.0.0.7"]
    assert [one.host for one in endpoints(["localhost:1", "box:1"])] == ["box"]
