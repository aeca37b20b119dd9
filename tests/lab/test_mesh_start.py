"""Several nodes become one mesh, however they start, and stay it when one goes for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import cluster, inside
from tests.lab.cluster import Cluster, members, serving, statuses
from tests.lab.conftest import tracked_cluster

Measured = Callable[[str, float], None]


@pytest.fixture(scope="module")
def started(lowerdir: str, scratch: Path) -> Iterator[tuple[Cluster, float]]:
    """Four nodes, all started in the same moment, and how long they took to be a mesh."""
    with tracked_cluster(["one", "two", "three", "four"], lowerdir, scratch) as nodes:
        began_at = time.monotonic()
        nodes.start(nodes.alike())
        yield nodes, time.monotonic() - began_at


@pytest.fixture
def nodes(started: tuple[Cluster, float]) -> Cluster:
    """These nodes, whatever the test before has done."""
    nodes, _ = started
    nodes.put_right(nodes.alike())
    return nodes


def test_a_cold_start_of_all_nodes_makes_one_mesh(
    started: tuple[Cluster, float], measured: Measured
) -> None:
    nodes, took_s = started
    measured("four nodes from systemctl start to one mesh that serves all models", took_s)
    engines = nodes.engines()
    assert sorted(model for _, model in engines) == sorted(cluster.MODELS), "each runs once"


def test_any_gateway_answers_for_every_model_and_says_who_did(
    nodes: Cluster,
) -> None:
    for model in cluster.MODELS:
        (server,) = nodes.where(model)
        for node in nodes.nodes:
            answer = inside.chat(node, model)
            assert answer.good, f"{model} through {node.name}: {answer}"
            assert answer.node == server.name
            stream = inside.chat(node, model, stream=True)
            assert stream.good, f"{model} through {node.name}: {stream}"


def test_no_unit_of_a_mesh_fails_or_is_refused_anything(nodes: Cluster) -> None:
    for node in nodes.nodes:
        failed = node.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout
        assert failed == ""
        said = node.journal(
            "-u", "meshd", "-u", "mesh-gateway", "-u", "mesh-apply", "-p", "warning"
        )
        assert "ermission" not in said, said
        assert (inside.control(node, "/v1/status") or {})["degraded"] == []


def test_the_sandbox_of_a_node_in_a_mesh_is_as_tight_as_before(
    nodes: Cluster,
) -> None:
    node = nodes.nodes[0]
    for unit in ("meshd", "mesh-gateway"):
        done = node.run(
            ["systemd-analyze", "security", "--no-pager", "--threshold=20", unit], timeout_s=60
        )
        assert done.returncode == 0, done.stdout[-500:]
    # The two doors of the mesh: Zenoh's and the gateway's. (QUIC connects from UDP ports that the
    # kernel chooses; they look like listening ones.)
    lowest = int(node.read("/proc/sys/net/ipv4/ip_local_port_range").split()[0])
    listening = [
        line.split() for line in node.run(["ss", "-Hlntu"], check=True).stdout.splitlines()
    ]
    open_to_others = {
        (kind, int(port))
        for kind, _, _, _, local, *_ in listening
        for host, _, port in [local.rpartition(":")]
        if host != "127.0.0.1" and not (kind == "udp" and int(port) >= lowest)
    }
    assert open_to_others == {("udp", 9338), ("tcp", 9338)}


def test_round_trips_are_measured_from_within_the_sandbox(nodes: Cluster) -> None:
    node = nodes.nodes[0]

    def known() -> bool:
        rtts = [one["rtt_ms"] for one in members(node) if not one["me"]]
        return len(rtts) == len(nodes.nodes) - 1 and all(rtt is not None for rtt in rtts)

    node.wait(known, 30, "a round trip to every other node")
    assert "forbidden" not in node.journal("-u", "meshd")


def test_a_leaving_node_is_gone_at_once_and_its_model_moves(
    nodes: Cluster, measured: Measured
) -> None:
    (leaving,) = nodes.where("small")
    others = [node for node in nodes.nodes if node is not leaving]
    with inside.watch(others, statuses) as seen, inside.watch(others, serving) as served:
        began_at = time.monotonic()
        leaving.systemctl("stop", "mesh.target", timeout_s=60)
        nodes.settled(others, timeout_s=30)
    gone = [seen.first(node.name, lambda now: leaving.name not in now, began_at) for node in others]
    stopped_at = max(at for at in gone if at is not None)
    measured("systemctl stop mesh.target to gone from the last view", stopped_at - began_at)
    for node in others:
        said = [now.get(leaving.name) for at, now in seen.seen[node.name] if at >= began_at]
        assert "suspect" not in said, f"{node.name} missed a node that said goodbye"
    moved = [
        served.first(
            node.name, lambda now: any("small" in models for models in now.values()), stopped_at
        )
        for node in others
    ]
    moved_s = max(at for at in moved if at is not None) - began_at
    measured("systemctl stop mesh.target to its model served by another", moved_s)
    assert stopped_at - began_at <= 5.0
    assert moved_s <= 15.0
    nodes.wait_served("small", by=others)


def test_a_node_that_boots_gets_its_address_late_and_still_joins(
    nodes: Cluster,
) -> None:
    node = nodes.nodes[-1]
    others = nodes.nodes[:-1]
    node.systemctl("enable", "mesh.target", "meshd", "mesh-gateway", "mesh-apply.path")
    node.pull_the_plug()
    node.power_lost()
    node.boot()
    node.wait(lambda: inside.control(node, "/v1/status"), 60, "meshd after the boot")
    nodes.network.plug_in(node)
    nodes.settled(timeout_s=120)

    def dialable() -> bool:
        told = {one["name"]: list(one["addresses"]) for one in members(others[0])}
        return told[node.name] == [f"{node.address}:9338"]

    node.wait(dialable, 20, "its address to be known")
    nodes.wait_served("tiny", by=nodes.nodes)


@pytest.mark.timeout(300)
def test_twenty_restarts_in_a_row_leave_no_ghost(nodes: Cluster, measured: Measured) -> None:
    (server,) = nodes.where("tiny")
    node = next(one for one in nodes.nodes if one is not server)
    known = {nodes.id(one) for one in nodes.nodes}
    engines = nodes.engines()
    began_at = time.monotonic()
    for count in range(20):
        if count % 4 == 3:
            node.run(["kill", "-9", str(node.main_pid("meshd"))], check=True)
            node.wait(lambda: node.active("meshd"), 30, "meshd to be ready again", every_s=0.05)
        else:
            node.systemctl("restart", "meshd", timeout_s=60)
        for one in nodes.nodes:
            if one is not node:
                listed = [member["id"] for member in members(one)]
                assert set(listed) <= known, f"ghosts in the view of {one.name}"
                assert len(listed) == len(set(listed))
    nodes.settled()
    measured("twenty restarts of one meshd, until all agree", time.monotonic() - began_at)
    for one in nodes.nodes:
        assert {member["id"] for member in members(one)} == known
    assert nodes.engines() == engines, "nobody replaced anything"


def test_a_mesh_by_lan_discovery_alone(
    make_cluster: Callable[..., Cluster], measured: Measured
) -> None:
    nodes = make_cluster("red", "green", "blue")
    began_at = time.monotonic()
    nodes.start(nodes.alike(cluster.config(lan=True)))
    measured("three nodes by LAN discovery to one mesh", time.monotonic() - began_at)
    assert sorted(model for _, model in nodes.engines()) == sorted(cluster.MODELS)
    nodes.wait_served("tiny", "small", by=nodes.nodes)
