"""A shard's engine or node dies: its conversations go on with other shards, and answers say so."""

from __future__ import annotations

import time
from itertools import count

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.experts.conftest import Measured
from tests.lab.experts.shards import (
    MADE_S,
    MODEL,
    UNIT,
    files,
    homes,
    replicas,
    session,
    wait_shards,
)
from tests.lab.inside import Answer, Stream
from tests.lab.node import Node, wait
from tests.lab.streams import comments_of, resumed, text_of

# Some of it has come, and most of it has not, when the blow falls.
TOKENS = 900


def stream_of(asked: Node, name: str, victim: Node) -> Stream:
    """A stream of a conversation whose shard is the victim's, which has begun."""
    stream = Stream(asked, MODEL, TOKENS, 120, headers={"X-Session-Id": name})
    wait(lambda: len(stream.data_at) > 5, 30, f"a stream from {victim.name}", every_s=0.005)
    assert inside.busy(victim, MODEL), "it has ended"
    return stream


def quality_in(comments: list[str]) -> str:
    """What the comment says that tells who goes on."""
    told = [one for one in comments if "x-mesh-node: " in one]
    return told[-1].partition("x-mesh-quality: ")[2] if told else ""


def went_on(stream: Stream, before: str) -> Answer:
    """It ended well, though elsewhere. :param before: the quality that it began with."""
    answer = stream.result()
    assert answer.good, str(answer)
    assert resumed(answer), comments_of(answer)
    assert answer.head["X-Mesh-Quality"] == before
    assert text_of(answer)
    return answer


def own_of(homes_before: dict[str, str], node: Node) -> list[str]:
    return [name for name, home in homes_before.items() if home == node.name]


def test_a_conversation_stays_where_it_is(nodes: Cluster) -> None:
    ada, bob, _ = nodes.nodes
    first = homes(ada)
    assert len(set(first.values())) == 3, "all get some"
    assert homes(bob) == first, "whichever gateway is asked"
    assert homes(ada) == first


def test_a_node_without_power_takes_only_its_own_conversations_along(
    nodes: Cluster, measured: Measured
) -> None:
    victim = nodes.nodes[2]
    left = nodes.nodes[:2]
    asked = left[0]
    before = homes(asked)
    lost = own_of(before, victim)
    assert lost
    kept, said = files(victim), session(asked, lost[0]).head["X-Mesh-Quality"]
    stream = stream_of(asked, lost[0], victim)
    blow_at = time.monotonic()
    victim.pull_the_plug()
    wait(lambda: not victim.alive(), 10, "its end", every_s=0.002)
    answer = session(asked, lost[0])
    measured("from a node's death to the next turn of its conversation", answer.ended_at - blow_at)
    assert answer.good, str(answer)
    assert answer.node != victim.name
    now = answer.head["X-Mesh-Quality"]
    assert now.startswith("shard; ")
    assert now != said, "another shard loses something else"
    ended = went_on(stream, said)
    measured("from a node's death to the end of its stream", ended.ended_at - blow_at)
    assert quality_in(comments_of(ended)).startswith("shard; ")
    for _ in range(3):
        after = homes(asked)
        stayed = {name: home for name, home in before.items() if name not in lost}
        assert {name: after[name] for name in stayed} == stayed
        assert victim.name not in after.values()
    # And back: what is there is served again, without any work.
    victim.power_lost()
    victim.boot()
    nodes.network.plug_in(victim)
    began_at = time.monotonic()
    victim.systemctl("start", "mesh.target", timeout_s=120)
    wait_shards(nodes, timeout_s=MADE_S)
    measured("from a node's start to its shard that was there", time.monotonic() - began_at)
    assert files(victim) == kept
    wait(lambda: homes(asked) == before, 30, "all conversations at home")


def test_an_engine_that_is_killed_is_replaced_in_the_middle_of_a_stream(nodes: Cluster) -> None:
    victim, asked = nodes.nodes[1], nodes.nodes[0]
    name = next(
        name
        for name in (f"with {victim.name} {number}" for number in count())
        if session(asked, name).node == victim.name
    )
    said, kept = session(asked, name).head["X-Mesh-Quality"], files(victim)
    stream = stream_of(asked, name, victim)
    victim.run(["kill", "-9", str(victim.main_pid(UNIT))], check=True)
    went_on(stream, said)
    wait_shards(nodes)
    assert files(victim) == kept
    wait(lambda: session(asked, name).node == victim.name, 30, "the conversation at home")


def test_a_brain_that_is_killed_takes_nothing_along(nodes: Cluster) -> None:
    node, asked = nodes.nodes[0], nodes.nodes[1]
    engine, brain, kept = node.main_pid(UNIT), node.main_pid("meshd"), files(node)
    with inside.load(asked, MODEL) as (load,):
        node.run(["kill", "-9", str(brain)], check=True)
        wait(lambda: node.main_pid("meshd") not in (0, brain), 30, "another brain")
        wait_shards(nodes)
        wait(lambda: len(load.answers) > 10, 60, "answers")
    assert load.failed == []
    assert node.main_pid(UNIT) == engine
    assert files(node) == kept
    assert replicas(asked).keys() == {one.name for one in nodes.nodes}
