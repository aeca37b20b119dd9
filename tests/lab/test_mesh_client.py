"""A laptop: `role: client` has the gateway only, and outlives the node that it follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import cluster, inside, network
from tests.lab.cluster import Cluster, statuses
from tests.lab.conftest import tracked_cluster
from tests.lab.node import Node, wait

Measured = Callable[[str, float], None]

MODELS = cluster.model(replicas=2) + cluster.model("small", replicas=2)


@pytest.fixture(scope="module")
def booted(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    """ada, bob and cleo, where any two can serve everything, and lap, their client."""
    with tracked_cluster(["ada", "bob", "cleo", "lap"], lowerdir, scratch) as nodes:
        lap = nodes["lap"]
        nodes.nodes.remove(lap)
        nodes.strangers.append(lap)
        nodes.configure(lap, laptop(nodes))
        nodes.start(texts(nodes), settle=False)
        lap.systemctl("start", "mesh.target", timeout_s=120)
        yield nodes


def texts(nodes: Cluster) -> dict[str, str]:
    return nodes.alike(cluster.config(nodes.addresses[:2], models=MODELS))


def laptop(nodes: Cluster) -> str:
    peers = [node.address for node in nodes.nodes[:2]]
    return f"mesh:\n  peers: [{', '.join(peers)}]\nnode:\n  role: client\n"


@pytest.fixture
def nodes(booted: Cluster) -> Cluster:
    booted.put_right(texts(booted))
    (lap,) = booted.strangers
    wait(lambda: followed(booted, lap), 60, "the client to follow somebody")
    booted.wait_served("tiny", "small", by=[lap])
    return booted


def followed(nodes: Cluster, lap: Node) -> list[Node]:
    """The nodes to which the client's brain has a connection."""
    pid = lap.main_pid("meshd")
    shown = lap.run(["ss", "-Htnp", "state", "established", "dport", "=", ":9338"]).stdout
    peers = [line.split()[3] for line in shown.splitlines() if f"pid={pid}," in line]
    return [node for node in nodes.nodes if any(f"{node.address}:" in peer for peer in peers)]


def test_a_client_serves_through_others_and_is_no_member(nodes: Cluster) -> None:
    (lap,) = nodes.strangers
    for model in cluster.MODELS:
        for stream in (False, True):
            answer = inside.chat(lap, model, stream=stream)
            assert answer.good, str(answer)
            assert answer.node in {node.name for node in nodes.nodes}
    assert nodes.engines([lap]) == {}
    for node in nodes.nodes:
        assert "lap" not in statuses(node), "nobody keeps anything of it"
    listening = lap.run(["ss", "-Hlntu", "sport", "=", ":9338"], check=True).stdout
    assert listening == "", "a client has no door for others"
    assert lap.systemctl("list-units", "--failed", "--plain", "--no-legend").stdout == ""
    assert (inside.control(lap, "/v1/status") or {})["degraded"] == []


def test_a_client_goes_on_when_its_node_dies_and_follows_another(
    nodes: Cluster, measured: Measured
) -> None:
    (lap,) = nodes.strangers
    (first,) = followed(nodes, lap)
    with inside.load(lap, "tiny", "small") as loads:
        blow_at = time.monotonic()
        first.pull_the_plug()
        wait(
            lambda: [node for node in followed(nodes, lap) if node is not first],
            90,
            "the client to follow another",
            every_s=0.1,
        )
        measured("kill -9 of a client's node to following another", time.monotonic() - blow_at)
        others = [node for node in nodes.nodes if node is not first]
        nodes.settled(others)
        nodes.wait_served("tiny", "small", by=[lap])
    for load in loads:
        assert not load.failed, [str(one) for one in load.failed]


def test_a_client_works_on_from_its_last_table_while_nobody_tells_it_anything(
    nodes: Cluster,
) -> None:
    (lap,) = nodes.strangers
    brain = lap.main_pid("meshd")
    lap.run(["kill", "-STOP", str(brain)], check=True)
    try:
        for model in cluster.MODELS:
            assert inside.chat(lap, model).good
    finally:
        lap.run(["kill", "-CONT", str(brain)], check=True)
    lap.systemctl("stop", "meshd", timeout_s=60)
    try:
        lap.systemctl("restart", "mesh-gateway", timeout_s=60)
        for model in cluster.MODELS:
            assert inside.chat(lap, model).good
    finally:
        lap.systemctl("start", "meshd", timeout_s=60)
    wait(lambda: followed(nodes, lap), 60, "the client to follow somebody again")


def test_a_client_that_is_cut_off_comes_back_by_itself(nodes: Cluster, measured: Measured) -> None:
    (lap,) = nodes.strangers
    network.drop_incoming(lap, nodes.nodes)
    try:
        answer = inside.chat(lap, "tiny")
        assert answer.status in (502, 503), str(answer)
        assert answer.ended_at - answer.began_at < 30, "it says so soon"
    finally:
        network.drop_nothing(lap)
    mended_at = time.monotonic()
    nodes.wait_served("tiny", "small", by=[lap], timeout_s=60)
    measured("a client's link mended, to served again", time.monotonic() - mended_at)
