from __future__ import annotations

import ipaddress

import pytest

from meshd.config.settings import MeshSettings
from meshd.mesh.addresses import HostPort, host_port, own_hosts, told_addresses


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("box1", "box1", 9338),
        ("box1:1", "box1", 1),
        ("10.0.0.7:9400", "10.0.0.7", 9400),
        ("[fd00::1]", "fd00::1", 9338),
        ("[fd00::1]:7", "fd00::1", 7),
        ("fd00::1", "fd00::1", 9338),
    ],
)
def test_what_is_an_address(text: str, host: str, port: int) -> None:
    found = host_port(text, 9338)
    assert found == HostPort(host, port)
    assert host_port(str(found), 1) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":1",
        "box:0",
        "box:70000",
        "box:x",
        "[fd00::1",
        "[box]:1",
        "a b",
        "a/b",
        "[fd00::1]x",
        "-",
    ],
)
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- the words are for people
        host_port(text, 9338)


def test_others_are_told_what_was_configured() -> None:
    settings = MeshSettings(listen="[::]:9338", advertise=("box1", "box1.example.org:1"))
    assert told_addresses(settings) == ("box1:9338", "box1.example.org:1")


def test_who_listens_on_one_address_tells_that_one() -> None:
    assert told_addresses(MeshSettings(listen="127.0.0.1:9400")) == ("127.0.0.1:9400",)


def test_this_machines_addresses_are_ones_that_others_can_reach() -> None:
    hosts = own_hosts()
    assert len(hosts) <= 8
    for host in hosts:
        address = ipaddress.ip_address(host)
        unreachable = address.is_loopback or address.is_link_local or address.is_unspecified
        assert not unreachable
    told = told_addresses(MeshSettings(listen="0.0.0.0:9338"))
    assert told == tuple(f"{host}:9338" for host in hosts if ":" not in host)
