"""Streams through a gateway while what is behind it dies, restarts, is drained or switched off.

ada and bob serve `tiny`, cleo's gateway is where the clients are.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import cluster, inside
from tests.lab.cluster import Cluster, at_once
from tests.lab.conftest import tracked_cluster
from tests.lab.inside import Answer
from tests.lab.node import Node, wait
from tests.lab.streams import Streams, comments_of, resumed, unbroken

Measured = Callable[..., None]

SLOTS = 16
MODELS = cluster.model(replicas=2, nodes="[ada, bob]", slots=SLOTS)
STREAMS = 64
# Two engines with a thread each write some 2000 tokens a second, so that half of the streams wait
# for a slot for some seconds.
TOKENS = 400


@pytest.fixture(scope="module")
def booted(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    with tracked_cluster(["ada", "bob", "cleo"], lowerdir, scratch) as nodes:
        nodes.start(texts(nodes), settle=False)
        settled(nodes)
        yield nodes


def texts(nodes: Cluster) -> dict[str, str]:
    return nodes.alike(cluster.config(nodes.addresses[:2], models=MODELS))


@pytest.fixture
def nodes(booted: Cluster) -> Cluster:
    """All well, and both replicas serve."""
    booted.put_right(texts(booted), models=("tiny",))
    settled(booted)
    return booted


def settled(nodes: Cluster) -> None:
    nodes.settled(models=("tiny",))
    wait(lambda: serving(nodes) == ["ada", "bob"], 60, "two replicas")
    nodes.wait_served("tiny", by=nodes.nodes)


def serving(nodes: Cluster) -> list[str]:
    return sorted(node.name for node in nodes.where("tiny", seen_by=nodes["cleo"]))


@pytest.fixture(scope="module")
def said(booted: Cluster) -> dict[str, str]:
    """What `tiny` says to each prompt when nothing happens."""
    return unbroken(booted["cleo"], "tiny", TOKENS)


def restart(unit: str) -> Callable[[Node], object]:
    return lambda node: node.systemctl("restart", unit, timeout_s=60)


def started_at(node: Node, unit: str) -> float:
    """When the unit's process began, by the monotonic clock."""
    name = "ExecMainStartTimestampMonotonic"
    return int(node.systemctl("show", "--value", f"--property={name}", unit).stdout) / 1e6


def assert_untouched(streams: Streams, said: dict[str, str]) -> None:
    """Complete, right, and never broken on the way, whether or not somebody went on with it."""
    answers = streams.results()
    assert list(streams.wrong(said)) == []
    broken = [comments_of(answer) for answer in answers if resumed(answer)]
    assert broken == []


def failures(answers: Sequence[Answer]) -> list[str]:
    return [str(answer) for answer in answers if not answer.good]


# -- a node that dies ------------------------------------------------------------------------------


def test_64_streams_survive_the_death_of_a_node(
    nodes: Cluster, said: dict[str, str], measured: Measured
) -> None:
    bob, cleo = nodes["bob"], nodes["cleo"]
    began_at = time.monotonic()
    streams = Streams(cleo, "tiny", STREAMS, TOKENS)
    streams.under_way(begun=2 * SLOTS, waiting=1)
    begun, waiting = len(streams.begun()), len(streams.waiting())
    blow_at = time.monotonic()
    bob.pull_the_plug()
    answers = streams.results()
    measured(f"from {STREAMS} requests to the node's death", blow_at - began_at)
    measured("had begun when it died", begun, "streams")
    measured("had no byte when it died", waiting, "streams")
    measured("were resumed", sum(map(resumed, answers)), "streams")
    measured("longest gap in any stream", max(one.longest_gap_s for one in streams.all))
    measured("from the node's death to the last stream's end", time.monotonic() - blow_at)
    assert list(streams.wrong(said)) == []
    # bob had at least so many of those that had begun: ada has no more slots.
    assert sum(map(resumed, answers)) >= begun - SLOTS


# -- what may be restarted while streams run -------------------------------------------------------


def test_restarts_of_the_brain_touch_no_stream(
    nodes: Cluster, said: dict[str, str], measured: Measured
) -> None:
    engines = nodes.engines()
    brains = {node.name: node.main_pid("meshd") for node in nodes.nodes}
    streams = Streams(nodes["cleo"], "tiny", STREAMS, TOKENS)
    streams.under_way(begun=2 * SLOTS, waiting=1)
    began_at = time.monotonic()
    at_once(restart("meshd"), nodes.nodes)
    measured("a restart of meshd on all three nodes", time.monotonic() - began_at)
    assert_untouched(streams, said)
    there_at = max(started_at(node, "meshd") for node in nodes.nodes)
    through = sum(
        answer.began_at < began_at and there_at < answer.ended_at for answer in streams.results()
    )
    measured("ran from before it to after it", through, "streams")
    assert through, "the streams ended too soon to say anything"
    assert nodes.engines() == engines
    assert all(node.main_pid("meshd") != brains[node.name] for node in nodes.nodes)


def test_reloads_touch_no_stream(nodes: Cluster, said: dict[str, str], measured: Measured) -> None:
    engines = nodes.engines()
    streams = Streams(nodes["cleo"], "tiny", STREAMS, TOKENS)
    streams.under_way(begun=2 * SLOTS, waiting=1)
    began_at = time.monotonic()
    at_once(lambda node: node.systemctl("reload", "meshd", timeout_s=60), nodes.nodes)
    measured("a reload of meshd on all three nodes", time.monotonic() - began_at)
    running = len(streams.begun())
    measured("ran on after it", running, "streams")
    assert_untouched(streams, said)
    assert running, "the streams ended too soon to say anything"
    assert nodes.engines() == engines


@pytest.mark.parametrize("name", ["cleo", "ada"])
def test_a_restart_of_the_gateway_refuses_nobody_and_lets_streams_end(
    nodes: Cluster, said: dict[str, str], measured: Measured, name: str
) -> None:
    """Of the one that clients talk to, and of the one that it talks to."""
    node, cleo = nodes[name], nodes["cleo"]
    before = node.main_pid("mesh-gateway")
    with inside.load(cleo, *["tiny"] * 4, stream=True, pause_s=0) as loads:
        streams = Streams(cleo, "tiny", SLOTS, TOKENS)
        streams.under_way(begun=SLOTS)
        began_at = time.monotonic()
        node.systemctl("restart", "mesh-gateway", timeout_s=60)
        restarted_at = time.monotonic()
        wait(
            lambda: all(load.last_began_at > restarted_at for load in loads),
            30,
            "answers by the new gateway",
        )
    answers = [answer for load in loads for answer in load.answers]
    meanwhile = [one for one in answers if began_at <= one.ended_at]
    measured(f"restart of mesh-gateway on {name}", restarted_at - began_at)
    measured("new connections meanwhile", len(meanwhile), "requests")
    measured("longest wait of one", max(one.ended_at - one.began_at for one in meanwhile))
    assert failures(answers) == []
    assert_untouched(streams, said)
    assert any(one.stream.result().node == "ada" for one in streams.all)
    assert node.main_pid("mesh-gateway") != before


# -- taking leave ----------------------------------------------------------------------------------


def test_a_drained_node_ends_its_streams_and_gets_nothing_new(
    nodes: Cluster, said: dict[str, str], measured: Measured
) -> None:
    ada, cleo = nodes["ada"], nodes["cleo"]
    # By its own gateway, so that it has work wherever cleo's go.
    own = Streams(ada, "tiny", SLOTS // 4, TOKENS)
    streams = Streams(cleo, "tiny", 2 * SLOTS, TOKENS)
    wait(lambda: inside.busy(ada, "tiny"), 30, "work on ada", every_s=0.02)
    began_at = time.monotonic()
    with ThreadPoolExecutor(1) as pool, inside.load(cleo, "tiny") as (load,):
        drained = pool.submit(
            ada.run, ["meshd", "drain", "--wait", "--deadline", "2min"], timeout_s=150
        )
        wait(lambda: serving(nodes) == ["bob"], 30, "cleo to see it", every_s=0.02)
        seen_at = time.monotonic()
        done = drained.result()
        done_at = time.monotonic()
        wait(lambda: load.last_began_at > done_at, 30, "an answer afterwards")
    measured("meshd drain with streams running", done_at - began_at)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every answer ended by itself" in done.stdout
    assert_untouched(own, said)
    assert_untouched(streams, said)
    assert failures(load.answers) == []
    late = {answer.node for answer in load.answers if answer.began_at > seen_at + 1}
    assert late == {"bob"}
    assert ("ada", "tiny") not in nodes.engines()
    ada.run(["meshd", "drain", "--undo"], check=True)


def test_what_a_drain_cuts_off_goes_on_elsewhere(
    nodes: Cluster, said: dict[str, str], measured: Measured
) -> None:
    ada, cleo = nodes["ada"], nodes["cleo"]
    # By its own gateway, so that it has work wherever cleo's go.
    own = Streams(ada, "tiny", SLOTS // 4, TOKENS)
    streams = Streams(cleo, "tiny", 2 * SLOTS, TOKENS)
    wait(lambda: len(own.begun()) == len(own.all), 30, "work on ada", every_s=0.02)
    began_at = time.monotonic()
    done = ada.run(["meshd", "drain", "--wait", "--deadline", "0s"], timeout_s=90)
    measured("meshd drain without any time", time.monotonic() - began_at)
    answers = [*own.results(), *streams.results()]
    measured("were resumed", sum(map(resumed, answers)), "streams")
    assert [*own.wrong(said), *streams.wrong(said)] == []
    assert any(map(resumed, answers)), done.stdout
    assert done.returncode == 3, "it says that some were cut off"
    ada.run(["meshd", "drain", "--undo"], check=True)


def test_a_node_that_is_switched_off_ends_its_streams_first(
    nodes: Cluster, said: dict[str, str], measured: Measured
) -> None:
    ada, cleo = nodes["ada"], nodes["cleo"]
    with inside.load(cleo, *["tiny"] * 4) as loads:
        streams = Streams(cleo, "tiny", SLOTS, TOKENS)
        streams.under_way(begun=SLOTS)
        began_at = time.monotonic()
        ada.systemctl("stop", "mesh.target", timeout_s=60)
        stopped_at = time.monotonic()
        wait(
            lambda: all(load.last_began_at > stopped_at for load in loads),
            30,
            "answers afterwards",
        )
    answers = [answer for load in loads for answer in load.answers]
    measured("systemctl stop mesh.target with streams running", stopped_at - began_at)
    by = Counter(one.stream.result().node for one in streams.all)
    measured("were ada's when it was stopped", by["ada"], "streams")
    assert by["ada"]
    assert_untouched(streams, said)
    assert failures(answers) == []
    late = {answer.node for answer in answers if answer.began_at > stopped_at}
    assert late == {"bob"}
