from __future__ import annotations

import json
import re
from pathlib import PurePath
from typing import Any

import zenoh
from hypothesis import given
from hypothesis import strategies as st

from meshd.config.settings import Preset
from meshd.mesh.lan import from_hello
from meshd.mesh.zenoh_config import (
    SessionPlan,
    config_text,
    listen_endpoint,
    mesh_tag,
    quic_endpoint,
    scout_text,
    session_zid,
)

TLS = PurePath("/run/mesh/tls")
ID = st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16)
PLANS = st.builds(
    SessionPlan,
    zid=st.builds(session_zid, ID, ID, st.binary(min_size=3, max_size=3)),
    core=st.booleans(),
    tls=st.just(TLS),
    preset=st.sampled_from(Preset),
    listen=st.just(("quic/[::]:9338",)),
    connect=st.lists(st.sampled_from(["quic/10.0.0.1:9338", "quic/fd00::2:9338"])).map(tuple),
    revoked=st.lists(ID, max_size=3).map(tuple),
    answer_scouts=st.booleans(),
)


def config(**changes: Any) -> dict[str, Any]:
    plan = SessionPlan(**{"zid": "a1", "core": True, "tls": TLS, **changes})
    parsed: dict[str, Any] = json.loads(config_text(plan))
    return parsed


@given(PLANS)
def test_zenoh_takes_every_plan(plan: SessionPlan) -> None:
    taken = json.loads(str(zenoh.Config.from_json5(config_text(plan))))
    assert taken["mode"] == ("router" if plan.core else "client")
    link = taken["transport"]["link"]
    assert link["protocols"] == ["quic"]
    assert link["tls"]["enable_mtls"] is True
    assert link["rx"]["max_message_size"] == 65_536
    assert taken["adminspace"]["enabled"] is False
    assert taken["transport"]["shared_memory"]["enabled"] is False
    assert link["tx"]["lease"] == (1800 if plan.preset is Preset.LAN else 4000)


@given(PLANS)
def test_nobody_is_connected_to_because_multicast_found_it(plan: SessionPlan) -> None:
    multicast = json.loads(config_text(plan))["scouting"]["multicast"]
    assert not any(multicast["autoconnect"].values())
    assert multicast["enabled"] is (plan.core and plan.answer_scouts)


def test_a_revoked_node_may_do_nothing() -> None:
    rules = config(revoked=("b" * 16, "a" * 16))["access_control"]
    (rule,) = rules["rules"]
    assert rule["permission"] == "deny"
    assert rule["key_exprs"] == ["**"]
    assert rule["flows"] == ["ingress", "egress"]
    assert rules["subjects"][0]["cert_common_names"] == ["a" * 16, "b" * 16]
    assert rules["enabled"] is True
    assert "access_control" not in config()


def test_addresses_are_written_as_zenoh_wants_them() -> None:
    assert quic_endpoint("fd00::2", 9338) == "quic/fd00::2:9338"
    assert quic_endpoint("[fd00::2]", 9338) == "quic/fd00::2:9338"
    assert quic_endpoint("box.lan", 1) == "quic/box.lan:1"
    assert listen_endpoint("::", 9338) == "quic/[::]:9338"
    assert listen_endpoint("10.0.0.1", 9338) == "quic/10.0.0.1:9338"


@given(ID, ID, st.binary(min_size=3, max_size=3))
def test_a_session_id_is_one_that_zenoh_writes_back_as_it_is(
    mesh: str, node: str, nonce: bytes
) -> None:
    zid = session_zid(mesh, node, nonce)
    assert re.fullmatch(r"[1-9a-f][0-9a-f]{30}[1-9a-f]", zid)
    assert zid.startswith(mesh_tag(mesh))


def test_the_lan_shows_only_other_nodes_of_this_mesh() -> None:
    places = ["quic/[fd00::2]:9338", "quic/192.0.2.2:9338", "quic/[fe80::1]:9338", "tcp/10.0.0.1:1"]
    theirs = session_zid("mesh", "theirs", b"abc")
    found = from_hello(theirs, places, "mesh", "mine")
    assert found is not None
    assert [str(address) for address in found.addresses] == ["192.0.2.2:9338", "[fd00::2]:9338"]
    assert from_hello(theirs, places, "another mesh", "mine") is None
    assert from_hello(session_zid("mesh", "mine", b"abc"), places, "mesh", "mine") is None
    assert from_hello(theirs, ["quic/[garbage", "quic/x:0", ""], "mesh", "mine") is None


def test_zenoh_takes_what_is_asked_of_the_lan() -> None:
    taken = json.loads(str(zenoh.Config.from_json5(scout_text())))
    assert taken["scouting"]["multicast"]["enabled"] is True
