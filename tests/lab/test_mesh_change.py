"""A mesh whose meshd is restarted node by node, and whose configuration changes on one of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import cluster, inside, mesh
from tests.lab.cluster import Cluster, statuses
from tests.lab.conftest import tracked_cluster

Measured = Callable[[str, float], None]


@pytest.fixture(scope="module")
def booted(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        nodes.start(nodes.alike())
        yield nodes


@pytest.fixture
def nodes(booted: Cluster) -> Cluster:
    booted.put_right(booted.alike())
    booted.wait_served("tiny", "small", by=booted.nodes)
    return booted


def test_a_rolling_restart_fails_no_request_and_moves_nothing(
    nodes: Cluster, measured: Measured
) -> None:
    engines = nodes.engines()
    for node in nodes.nodes:
        through = next(other for other in nodes.nodes if other is not node)
        others = [other for other in nodes.nodes if other is not node]
        with (
            inside.watch(others, statuses) as seen,
            inside.load(through, "tiny", "small") as whole,
            inside.load(through, "tiny", stream=True, tokens=30) as streams,
            inside.load(node, "tiny", "small") as own,
        ):
            began_at = time.monotonic()
            node.systemctl("restart", "meshd", timeout_s=60)
            measured(f"systemctl restart meshd on {node.name}", time.monotonic() - began_at)
            nodes.settled()
        for load in (*whole, *streams, *own):
            assert load.answers
            assert not load.failed, [str(one) for one in load.failed]
        views = [view for other in others for _, view in seen.seen[other.name]]
        assert all(view.get(node.name) == "alive" for view in views if view), (
            f"{node.name} had said that it comes back: {views}"
        )
    assert nodes.engines() == engines


def test_a_model_added_on_one_node_is_served_by_all_and_touches_no_other(
    nodes: Cluster, measured: Measured
) -> None:
    engines = nodes.engines()
    ada = nodes["ada"]
    peers = nodes.addresses[:2]
    three = cluster.model() + cluster.model("small") + cluster.model("moe")
    with inside.load(nodes["cleo"], "tiny", "small") as loads:
        began_at = time.monotonic()
        nodes.reconfigure(ada, cluster.config(peers, models=three))
        nodes.settled(models=("tiny", "small", "moe"))
        nodes.wait_served("moe", by=nodes.nodes)
        measured("a model added on one node, to served through all", time.monotonic() - began_at)
        grown = nodes.engines()
        assert {key: pid for key, pid in grown.items() if key in engines} == engines
        assert [model for _, model in grown.keys() - engines.keys()] == ["moe"]
        nodes.reconfigure(ada, cluster.config(peers))
        ada.wait(lambda: nodes.engines() == engines, 60, "the added model to be gone")
    for load in loads:
        assert not load.failed, [str(one) for one in load.failed]
    assert inside.chat(nodes["bob"], "moe").status == 404


def test_the_plan_of_a_change_covers_the_whole_mesh(nodes: Cluster) -> None:
    ada = nodes["ada"]
    three = cluster.model() + cluster.model("small") + cluster.model("moe")
    text = cluster.config(nodes.addresses[:2], models=three)
    engines = nodes.engines()
    ada.write(mesh.CONFIG, text)
    done = ada.run(["meshd", "plan"])
    assert done.returncode == 2, done.stdout + done.stderr
    assert "moe" in done.stdout
    for name, model in engines:
        assert name in done.stdout, f"{model} runs on {name}: {done.stdout}"
    assert nodes.engines() == engines, "a plan changes nothing"


def test_another_configuration_for_the_mesh_itself_keeps_the_engines(
    nodes: Cluster, measured: Measured
) -> None:
    engines = nodes.engines()
    bob = nodes["bob"]
    with inside.load(nodes["ada"], "tiny", "small") as loads:
        began_at = time.monotonic()
        nodes.reconfigure(bob, cluster.config([nodes["cleo"].address]))
        nodes.settled()
        measured("other peers by a reload, to equal views", time.monotonic() - began_at)
    for load in loads:
        assert not load.failed, [str(one) for one in load.failed]
    assert nodes.engines() == engines
