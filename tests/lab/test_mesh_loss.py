"""Nodes die, hang and are cut off while requests run: who notices, who takes over, who does not.

ada and bob serve `tiny`, bob serves `small` as well; cleo and dora stand by for `small`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import cluster, inside, network
from tests.lab.cluster import Cluster, statuses
from tests.lab.conftest import tracked_cluster
from tests.lab.node import Node, wait

Measured = Callable[[str, float], None]

MODELS = cluster.model(replicas=2, nodes="[ada, bob]") + cluster.model(
    "small", nodes="[bob, cleo, dora]"
)
# What the issue allows from the blow to an answer, loading the model not counted, and to the
# moment when all suspect the node.
REPLACED_S = 10.0
SUSPECT_S = 3.0
# The test looks through `nsenter`, on processors that four nodes share.
LOOK_S = 1.0
# So long a node may be away without a word before it is given up: Zenoh's lease and the grace.
GRACE_S = 5.5


@pytest.fixture(scope="module")
def booted(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    with tracked_cluster(["ada", "bob", "cleo", "dora"], lowerdir, scratch) as nodes:
        nodes.start(texts(nodes))
        yield nodes


def texts(nodes: Cluster) -> dict[str, str]:
    peers = nodes.addresses[:2]
    roles = {"ada": "auto", "bob": "auto", "cleo": "standby", "dora": "standby"}
    return {name: cluster.config(peers, models=MODELS, role=role) for name, role in roles.items()}


@pytest.fixture
def nodes(booted: Cluster) -> Cluster:
    """All well, and `small` at home: on bob."""
    booted.put_right(texts(booted))
    astray: list[Node] = []

    def brought_home() -> bool:
        # While bob boots, another that stands by may be the next to take it.
        for node in booted.where("small"):
            if node.name != "bob" and node not in astray:
                node.systemctl("stop", "mesh.target", timeout_s=60)
                astray.append(node)
        return home(booted)

    wait(brought_home, 60, "small to run on bob alone", every_s=0.2)
    for node in astray:
        node.systemctl("start", "mesh.target", timeout_s=60)
    booted.settled()
    booted.wait_served("tiny", "small", by=booted.nodes)
    return booted


def home(nodes: Cluster) -> bool:
    serving = [node.name for node in nodes.where("small")]
    running = [name for name, model in nodes.engines() if model == "small"]
    return serving == running == ["bob"]


def missed(name: str) -> Callable[[dict[str, str]], bool]:
    """Whether a view has something else than alive for this node."""
    return lambda view: bool(view) and view.get(name) != "alive"


def suspected_after_s(
    seen: inside.Watch, others: Sequence[Node], name: str, blow_at: float
) -> float:
    """When the last of these missed the node; all did."""
    times = {node.name: seen.first(node.name, missed(name), blow_at) for node in others}
    assert None not in times.values(), f"somebody did not miss {name}: {seen.seen}"
    return max(at for at in times.values() if at is not None) - blow_at


def engine_started_at(node: Node, model: str) -> float:
    """When the engine's process began, by the monotonic clock."""
    shown = node.systemctl(
        "show", "--value", "--property=ExecMainStartTimestampMonotonic", f"mesh-llama@{model}"
    )
    return int(shown.stdout) / 1e6


def wait_answered(loads: Sequence[inside.Load], blow_at: float, timeout_s: float) -> float:
    """When the last of these loads had its first good answer to a request made after the blow."""

    def first(load: inside.Load) -> float | None:
        after = (one for one in list(load.answers) if one.good and one.began_at > blow_at)
        return next((one.ended_at for one in after), None)

    def all_of_them() -> list[float]:
        found = [first(load) for load in loads]
        return [at for at in found if at is not None] if None not in found else []

    return max(wait(all_of_them, timeout_s, "an answer after the blow", every_s=0.05))


def outage(blow: str, replaced_s: float, loading_s: float, measured: Measured) -> None:
    measured(f"{blow} to its model answered by a standby", replaced_s)
    measured("  of which the engine's start and load", loading_s)
    assert replaced_s - loading_s <= REPLACED_S


# -- a node that dies ------------------------------------------------------------------------------


def test_a_killed_node_is_missed_and_replaced_while_requests_run(
    nodes: Cluster, measured: Measured
) -> None:
    ada, bob, cleo, dora = nodes.nodes
    others = [ada, cleo, dora]
    untouched = inside.Stream(ada, "tiny", 400)
    with (
        ThreadPoolExecutor(4) as pool,
        inside.watch(others, statuses) as seen,
        inside.load(ada, "small") as (small_by_ada,),
        inside.load(dora, "small", "tiny") as (small_by_dora, tiny_by_dora),
    ):
        # Whole answers, of which the client gets no byte before the last token.
        running = [pool.submit(inside.chat, cleo, "tiny", tokens=200) for _ in range(4)]
        wait(lambda: inside.busy(bob, "tiny") and untouched.pieces > 3, 30, "work", every_s=0.02)
        blow_at = time.monotonic()
        bob.pull_the_plug()
        back_at = wait_answered([small_by_ada, small_by_dora], blow_at, 60)
        answers = [one.result() for one in running]
        stream = untouched.result()
        nodes.settled(others)
    suspected_s = suspected_after_s(seen, others, "bob", blow_at)
    measured("kill -9 of a node to suspect everywhere", suspected_s)
    (heir,) = nodes.where("small")
    loading_s = back_at - engine_started_at(heir, "small")
    outage("kill -9 of a node", back_at - blow_at, loading_s, measured)
    assert suspected_s <= SUSPECT_S + LOOK_S
    assert stream.good, f"another node's stream: {stream}"
    assert stream.node == "ada"
    for answer in answers:
        assert answer.good, f"a request without a byte yet: {answer}"
    assert not tiny_by_dora.failed, [str(one) for one in tiny_by_dora.failed]
    late = [one for one in tiny_by_dora.answers if one.began_at > blow_at + 1 and one.node == "bob"]
    assert not late, "nobody sends it anything after a second"


def test_a_node_that_was_killed_boots_and_is_taken_back(nodes: Cluster, measured: Measured) -> None:
    dora = nodes["dora"]
    before = nodes.id(dora)
    dora.pull_the_plug()
    others = [node for node in nodes.nodes if node is not dora]
    nodes.settled(others)
    dora.power_lost()
    dora.boot()
    nodes.network.plug_in(dora)
    began_at = time.monotonic()
    dora.systemctl("start", "mesh.target", timeout_s=60)
    nodes.settled()
    measured(
        "a node that was killed, from its start to alive in all views", time.monotonic() - began_at
    )
    assert (inside.control(dora, "/v1/status") or {})["mesh"]["node"] == before


def test_killing_only_the_brain_replaces_nothing_and_fails_nothing(
    nodes: Cluster, measured: Measured
) -> None:
    bob, others = nodes["bob"], [node for node in nodes.nodes if node.name != "bob"]
    engines = nodes.engines()
    with (
        inside.watch(others, statuses) as seen,
        inside.load(bob, "tiny", "small") as by_bob,
        inside.load(nodes["dora"], "tiny", "small") as by_dora,
    ):
        blow_at = time.monotonic()
        bob.run(["kill", "-9", str(bob.main_pid("meshd"))], check=True)
        bob.wait(lambda: not bob.active("meshd"), 10, "the brain's end", every_s=0.01)
        bob.wait(lambda: bob.active("meshd"), 60, "the brain to be ready again", every_s=0.05)
        away_s = time.monotonic() - blow_at
        measured("kill -9 of meshd to READY=1 again", away_s)
        nodes.settled()
        measured("kill -9 of meshd to equal views", time.monotonic() - blow_at)
    for load in by_bob:
        assert not load.failed, [str(one) for one in load.failed]
    kept = {key: pid for key, pid in nodes.engines().items() if key in engines}
    assert kept == engines, "no engine was touched"
    if away_s > GRACE_S:
        pytest.skip(f"this machine took {away_s:.1f} s to start meshd, so it had to be replaced")
    for load in by_dora:
        assert not load.failed, [str(one) for one in load.failed]
    assert nodes.engines() == engines, "nobody replaced anything"
    for node in others:
        views = [view for at, view in seen.seen[node.name] if at > blow_at and view]
        assert all("bob" in view for view in views), f"{node.name} gave bob up: {views}"


# -- a network that fails --------------------------------------------------------------------------


def cable(nodes: Cluster) -> tuple[Callable[[], None], Callable[[], None]]:
    bob = nodes["bob"]
    return lambda: nodes.network.cut(bob), lambda: nodes.network.mend(bob)


def deaf(nodes: Cluster) -> tuple[Callable[[], None], Callable[[], None]]:
    """bob hears nobody; what it says arrives."""
    bob, others = nodes["bob"], [node for node in nodes.nodes if node.name != "bob"]
    return lambda: network.drop_incoming(bob, others), lambda: network.drop_nothing(bob)


def mute(nodes: Cluster) -> tuple[Callable[[], None], Callable[[], None]]:
    """Nobody hears bob; what others say arrives there."""
    bob, others = nodes["bob"], [node for node in nodes.nodes if node.name != "bob"]

    def drop() -> None:
        for node in others:
            network.drop_incoming(node, [bob])

    def mend() -> None:
        for node in others:
            network.drop_nothing(node)

    return drop, mend


@pytest.mark.parametrize("fault", [cable, deaf, mute])
def test_a_broken_link_is_missed_replaced_and_forgiven(
    nodes: Cluster,
    measured: Measured,
    fault: Callable[[Cluster], tuple[Callable[[], None], Callable[[], None]]],
) -> None:
    ada, bob, cleo, dora = nodes.nodes
    others = [ada, cleo, dora]
    tiny = {key: pid for key, pid in nodes.engines().items() if key[1] == "tiny"}
    breaks, mends = fault(nodes)
    with (
        inside.watch(nodes.nodes, statuses) as seen,
        inside.load(ada, "small") as (small_by_ada,),
        inside.load(dora, "tiny") as (tiny_by_dora,),
        inside.load(bob, "tiny", "small") as by_bob,
    ):
        blow_at = time.monotonic()
        breaks()
        back_at = wait_answered([small_by_ada], blow_at, 60)
        nodes.settled(others)
        wait(lambda: statuses(bob) == {"bob": "alive"}, 30, "bob to see that it is alone")
        suspected_s = suspected_after_s(seen, others, "bob", blow_at)
        (heir,) = nodes.where("small")
        loading_s = back_at - engine_started_at(heir, "small")
        mended_at = time.monotonic()
        mends()
        wait(lambda: alike(nodes), 60, "views that are equal again", every_s=0.05)
        healed_s = time.monotonic() - mended_at
    what = fault.__name__
    measured(f"{what}: broken to suspect everywhere", suspected_s)
    measured(f"{what}: mended to equal views", healed_s)
    outage(f"{what}: broken", back_at - blow_at, loading_s, measured)
    assert suspected_s <= SUSPECT_S + (0 if fault is cable else SUSPECT_S)
    for load in (tiny_by_dora, *by_bob):
        assert not load.failed, [str(one) for one in load.failed]
    nodes.settled()
    assert {key: pid for key, pid in nodes.engines().items() if key[1] == "tiny"} == tiny


def alike(nodes: Cluster) -> bool:
    everybody = {node.name: "alive" for node in nodes.nodes}
    return all(statuses(node) == everybody for node in nodes.nodes)


# -- a node that hangs -----------------------------------------------------------------------------


def test_a_hung_brain_is_replaced_and_comes_back(nodes: Cluster, measured: Measured) -> None:
    ada, bob, cleo, dora = nodes.nodes
    others = [ada, cleo, dora]
    engines = nodes.engines()
    brain = str(bob.main_pid("meshd"))
    with (
        inside.watch(others, statuses) as seen,
        inside.load(bob, "tiny", "small") as by_bob,
        inside.load(dora, "tiny", "small") as by_dora,
    ):
        blow_at = time.monotonic()
        bob.run(["kill", "-STOP", brain], check=True)
        try:
            nodes.settled(others)
            replaced_s = time.monotonic() - blow_at
        finally:
            awake_at = time.monotonic()
            bob.run(["kill", "-CONT", brain], check=True)
        wait(lambda: alike(nodes), 60, "views that are equal again", every_s=0.05)
        healed_s = time.monotonic() - awake_at
    suspected_s = suspected_after_s(seen, others, "bob", blow_at)
    measured("SIGSTOP of meshd to suspect everywhere", suspected_s)
    measured("SIGSTOP of meshd to all models served by others", replaced_s)
    measured("SIGCONT of meshd to equal views", healed_s)
    assert suspected_s <= SUSPECT_S + LOOK_S
    small_by_dora = by_dora[1]
    for load in (*by_bob, by_dora[0]):
        assert not load.failed, [str(one) for one in load.failed]
    # Its engine would serve on, but who cannot ask the brain has to count it as lost.
    outage_s = [one.ended_at - blow_at for one in small_by_dora.failed]
    measured("SIGSTOP of meshd to the last request that failed elsewhere", max([0.0, *outage_s]))
    assert all(after_s <= replaced_s for after_s in outage_s)
    assert bob.main_pid("meshd") == int(brain)
    nodes.settled()
    after = nodes.engines()
    assert {key: pid for key, pid in after.items() if key[1] == "tiny"} == {
        key: pid for key, pid in engines.items() if key[1] == "tiny"
    }


def test_a_hung_node_is_replaced_and_comes_back(nodes: Cluster, measured: Measured) -> None:
    ada, bob, cleo, dora = nodes.nodes
    others = [ada, cleo, dora]
    with (
        ThreadPoolExecutor(4) as pool,
        inside.watch(others, statuses) as seen,
        inside.load(ada, "small") as (small_by_ada,),
        inside.load(dora, "tiny") as (tiny_by_dora,),
    ):
        running = [pool.submit(inside.chat, cleo, "tiny", tokens=200) for _ in range(4)]
        wait(lambda: inside.busy(bob, "tiny"), 30, "work at bob", every_s=0.02)
        blow_at = time.monotonic()
        bob.freeze(frozen=True)
        try:
            back_at = wait_answered([small_by_ada], blow_at, 60)
            nodes.settled(others)
            (heir,) = nodes.where("small")
            loading_s = back_at - engine_started_at(heir, "small")
            answers = [one.result() for one in running]
        finally:
            awake_at = time.monotonic()
            bob.freeze(frozen=False)
        wait(lambda: alike(nodes), 60, "views that are equal again", every_s=0.05)
        healed_s = time.monotonic() - awake_at
    suspected_s = suspected_after_s(seen, others, "bob", blow_at)
    measured("a frozen node: to suspect everywhere", suspected_s)
    measured("a frozen node: thawed to equal views", healed_s)
    outage("a frozen node", back_at - blow_at, loading_s, measured)
    assert suspected_s <= SUSPECT_S + LOOK_S
    for answer in answers:
        assert answer.good, f"a request without a byte yet: {answer}"
    assert not tiny_by_dora.failed, [str(one) for one in tiny_by_dora.failed]
    nodes.settled()


# -- two halves ------------------------------------------------------------------------------------


@pytest.mark.timeout(240)
def test_two_halves_run_for_a_minute_and_become_one_again_without_a_storm(
    nodes: Cluster, measured: Measured
) -> None:
    ada, bob, cleo, dora = nodes.nodes
    halves = ([ada, cleo], [bob, dora])
    engines = nodes.engines()
    parted_at = time.monotonic()
    for here, there in (halves, halves[::-1]):
        for node in here:
            network.drop_incoming(node, there)
    for half in halves:
        nodes.settled(half)
        nodes.wait_served("tiny", "small", by=half)
    measured("two halves: each complete by itself", time.monotonic() - parted_at)
    apart = nodes.engines()
    with inside.load(ada, "tiny", "small") as by_ada, inside.load(bob, "tiny", "small") as by_bob:
        wait(lambda: time.monotonic() - parted_at > 60, 70, "a minute apart", every_s=0.5)
        for half in halves:
            assert nodes.agreed(half), nodes.picture()
        assert nodes.engines() == apart, "each half is calm"
        sent = {node.name: cluster.interface(node)["tx_bytes"] for node in nodes.nodes}
        healed_at = time.monotonic()
        for node in nodes.nodes:
            network.drop_nothing(node)
        wait(lambda: alike(nodes), 60, "views that are equal again", every_s=0.05)
        measured("two halves: healed to equal views", time.monotonic() - healed_at)
        nodes.settled()
        calm_s = time.monotonic() - healed_at
    for load in (*by_ada, *by_bob):
        assert not load.failed, [str(one) for one in load.failed]
    for node in nodes.nodes:
        grown = cluster.interface(node)["tx_bytes"] - sent[node.name]
        assert grown < 1_000_000 + 200_000 * calm_s, f"{node.name} sent {grown} bytes to heal"
    wait(lambda: len(nodes.where("small")) == 1, 60, "one small, as before", every_s=0.2)
    after = nodes.engines()
    kept = {key: pid for key, pid in after.items() if apart.get(key) == pid}
    assert kept == after, "nothing was started anew"
    assert {key: pid for key, pid in after.items() if key[1] == "tiny"} == {
        key: pid for key, pid in engines.items() if key[1] == "tiny"
    }
