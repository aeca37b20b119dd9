"""The table from outside, the order of nodes to follow, and targets on other nodes."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from meshd.gateway.choice import Chosen, choose, place
from meshd.gateway.far_table import for_client, seen_from_outside
from meshd.gateway.follow_routes import order
from meshd.gateway.routes import (
    Front,
    ModelState,
    Peer,
    Route,
    RoutingTable,
    RoutingTableError,
    Target,
    decode,
    encode,
)
from meshd.gateway.routes_feed import edition

HERE = Target("me", "/run/mesh-engine/m/llama.sock", True, 2)
FAR = Target("far", "", True, 2, address="10.0.0.2:9338", rtt_ms=1.0)
TABLE = RoutingTable(
    node="me",
    mesh="mm",
    tls="/run/mesh/tls",
    routes=(Route("m", ModelState.READY, (HERE, FAR)),),
    peers=(Peer("me", "10.0.0.1:9338"), Peer("far", "10.0.0.2:9338")),
)


def chosen(table: RoutingTable, *suspects: str, **more: object) -> Target | None:
    choice = choose(table, "m", more.pop("load", {}), suspects, **more)  # type: ignore[arg-type]
    return choice.target if isinstance(choice, Chosen) else None


def of(*targets: Target) -> RoutingTable:
    return replace(TABLE, routes=(Route("m", ModelState.READY, targets),))


def test_from_outside_all_targets_are_behind_doors() -> None:
    outside = seen_from_outside(TABLE)
    here, far = outside.routes[0].targets
    assert (here.socket, here.address, here.node) == ("", "10.0.0.1:9338", "me")
    assert far == FAR
    assert outside.tls == ""
    assert b"/run" not in encode(outside)
    assert decode(encode(outside)) == outside
    unknown = replace(TABLE, peers=())
    assert seen_from_outside(unknown).routes[0].targets == (FAR,)


def test_a_client_dials_no_path_that_somebody_else_named() -> None:
    evil = replace(FAR, socket="/run/mesh/meshd.sock")
    table = for_client(of(evil, HERE, FAR), "laptop", "/tls")
    assert table.routes[0].targets == (FAR,)
    assert (table.node, table.tls, table.client) == ("laptop", "/tls", True)


def test_another_machine_is_told_how_long_a_load_takes_but_not_by_whose_clock() -> None:
    rising = replace(HERE, ready=False, load_s=40.0, since_s=1234.5)
    far = replace(FAR, ready=False, load_s=9.0, since_s=77.0)
    for table in (seen_from_outside(of(rising, far)), for_client(of(rising, far), "x", "/tls")):
        assert table.routes[0].targets[-1] == replace(far, since_s=0.0)
    assert seen_from_outside(of(rising)).routes[0].targets[0].load_s == 40.0


def test_another_machine_is_told_nothing_of_how_this_one_meets_its_clients() -> None:
    front = Front(hosts=("chat.lan",), key="/etc/mesh/key.pem", otlp="http://10.0.0.9:4318")
    outside = seen_from_outside(replace(TABLE, front=front, client=True))
    assert (outside.front, outside.client) == (Front(), False)
    assert b"chat.lan" not in encode(outside)


def test_the_generation_is_no_news() -> None:
    assert edition(TABLE).tag == edition(replace(TABLE, generation=7)).tag
    assert edition(TABLE).tag != edition(of(FAR)).tag
    assert edition(TABLE).event.endswith(b"\n\n")
    assert edition(TABLE).event.count(b"\n") == 4, "one line of data, however it is written"


def test_own_first_while_there_is_room_then_the_least_loaded_then_the_nearest() -> None:
    near = replace(FAR, node="near", address="10.0.0.3:9338", rtt_ms=0.2)
    table = of(FAR, near, HERE)
    assert chosen(table) == HERE
    assert chosen(table, load={HERE.key: 1}) == HERE
    assert chosen(table, load={HERE.key: 2}) == near
    assert chosen(of(replace(near, busy=1), FAR, HERE), load={HERE.key: 2}) == FAR
    assert chosen(table, load={HERE.key: 2, place("m", near): 1}) == FAR
    assert chosen(table, load={HERE.key: 2, place("m", near): 4, place("m", FAR): 4}) == HERE
    # Work for another model there is not this one's.
    assert chosen(table, load={HERE.key: 2, place("other", near): 9}) == near


def test_a_suspect_is_asked_only_when_nobody_else_is_there() -> None:
    missed = replace(HERE, suspect=True)
    assert chosen(of(missed, FAR)) == FAR
    assert chosen(of(missed)) == missed
    assert chosen(of(missed, FAR), FAR.key) == missed
    assert chosen(of(HERE, FAR), HERE.key, place("m", FAR)) is None
    assert chosen(of(HERE, FAR), HERE.key, here_only=True) is None
    assert chosen(of(HERE, FAR), HERE.key) == FAR


@pytest.mark.parametrize(
    "address",
    ["10.0.0.1", "host:", ":9338", "[::1:9338", "::1:9338", "h:1/v1", "u@h:1", "h:123456", "a b:1"],
)
def test_an_address_that_is_none_is_not_obeyed(address: str) -> None:
    for table in (of(replace(FAR, address=address)), replace(TABLE, peers=(Peer("x", address),))):
        with pytest.raises(RoutingTableError, match="host:port"):
            decode(encode(table))


@pytest.mark.parametrize("address", ["10.0.0.1:1", "[fe80::1]:9338", "gpu-1.lan:9338", "h:65535"])
def test_an_address_that_is_one_is(address: str) -> None:
    table = of(replace(FAR, address=address))
    assert decode(encode(table)) == table


def test_a_wait_without_end_is_not_obeyed() -> None:
    document = {**msgspec.json.decode(encode(TABLE)), "patience_ms": 0}
    with pytest.raises(RoutingTableError, match="patience_ms"):
        decode(msgspec.json.encode(document))


def test_who_worked_last_is_followed_first() -> None:
    static = ("seed", "[fd00::1]", "fd00::2", "h:1")
    assert order(static, None, ()) == ["seed:9338", "[fd00::1]:9338", "[fd00::2]:9338", "h:1"]
    nodes = ["10.0.0.1:9338", "10.0.0.2:9338"]
    assert order((), TABLE, ()) == nodes
    assert order((), TABLE, (nodes[1],)) == nodes[::-1]
    assert order(("seed",), TABLE, ("seed:9338", "gone:9338")) == ["seed:9338", *nodes]
