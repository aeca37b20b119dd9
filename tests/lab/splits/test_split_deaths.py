"""What a split is made of dies, hangs or vanishes: who notices, what clients see, who helps."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.inside import PROMPT, Answer, Stream
from tests.lab.node import Node, wait
from tests.lab.splits.conftest import TOKENS
from tests.lab.splits.split import (
    AGAIN_S,
    MODEL,
    Split,
    ended_well,
    find,
    gone,
    kill,
    plan_of,
    refused_well,
    served_again,
    wait_split,
)

Measured = Callable[..., None]
# The bound for noticing a process that only hangs, and what a busy machine may add.
NOTICED_S = 5.0
MARGIN_S = 3.0


def running(split: Split) -> Stream:
    """A stream through the spare node's gateway that has begun."""
    stream = Stream(split.spare, MODEL, TOKENS, AGAIN_S + 60, prompt=PROMPT)
    wait(lambda: len(stream.data_at) > 5, 30, "a stream that runs", every_s=0.01)
    return stream


def survived(
    nodes: Cluster, split: Split, stream: Stream, blow_at: float, said: str, measured: Measured
) -> Split:
    """The stream ended as promised, and the model is served again; how long that took."""
    answer, again_s = served_again(split.spare, blow_at)
    measured("from the blow to the next answer", again_s)
    assert answer.good, str(answer)
    ended = stream.result()
    measured("from the blow to the end of the stream that it cut", ended.ended_at - blow_at)
    assert ended_well(ended, said), str(ended)
    return wait_split(nodes)


# -- processes that die ----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["rpc-server", "its guard", "the host's guard"])
def test_a_process_that_is_killed_ends_no_stream_for_good(
    nodes: Cluster, split: Split, said: str, measured: Measured, which: str
) -> None:
    _, host_guard, member_guard, rpc = split.pids
    node, pid = {
        "rpc-server": (split.member, rpc),
        "its guard": (split.member, member_guard),
        "the host's guard": (split.host, host_guard),
    }[which]
    stream = running(split)
    blow_at = kill(node, pid)
    wait(lambda: gone(split.host, split.pids[0]), 10, "the end of the engine", every_s=0.02)
    measured("from the blow to the end of the host's engine", time.monotonic() - blow_at)
    after = survived(nodes, split, stream, blow_at, said, measured)
    assert after.pids[0] != split.pids[0]


# -- processes that hang ---------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["rpc-server", "its guard", "the host's guard"])
def test_a_process_that_hangs_is_noticed(
    nodes: Cluster, split: Split, said: str, measured: Measured, which: str
) -> None:
    llama, host_guard, member_guard, rpc = split.pids
    node, pid = {
        "rpc-server": (split.member, rpc),
        "its guard": (split.member, member_guard),
        "the host's guard": (split.host, host_guard),
    }[which]
    stream = running(split)
    blow_at = kill(node, pid, "STOP")
    wait(lambda: gone(split.host, llama), 30, "the end of the engine that waits", every_s=0.02)
    noticed_s = time.monotonic() - blow_at
    measured("from SIGSTOP to the end of the host's engine", noticed_s)
    survived(nodes, split, stream, blow_at, said, measured)
    wait(lambda: gone(node, pid), 30, "the end of what hung")
    assert noticed_s <= NOTICED_S + MARGIN_S


# -- nodes -----------------------------------------------------------------------------------------


def test_a_member_that_dies_is_replaced(
    nodes: Cluster, split: Split, said: str, measured: Measured
) -> None:
    stream = running(split)
    blow_at = time.monotonic()
    split.member.pull_the_plug()
    wait(lambda: not split.member.alive(), 10, "the member's end", every_s=0.01)
    answer, again_s = served_again(split.spare, blow_at)
    measured("from the member's death to an answer", again_s)
    assert answer.good, str(answer)
    assert ended_well(stream.result(), said), str(stream.result())
    left = [node for node in nodes.nodes if node is not split.member]
    after = wait_split(nodes, left)
    assert {after.host, after.member} == set(left)


def test_a_host_that_dies_is_replaced(
    nodes: Cluster, split: Split, said: str, measured: Measured
) -> None:
    stream = running(split)
    blow_at = time.monotonic()
    split.host.pull_the_plug()
    wait(lambda: not split.host.alive(), 10, "the host's end", every_s=0.01)
    answer, again_s = served_again(split.spare, blow_at)
    measured("from the host's death to an answer", again_s)
    assert answer.good, str(answer)
    assert ended_well(stream.result(), said), str(stream.result())
    left = [node for node in nodes.nodes if node is not split.host]
    after = wait_split(nodes, left)
    assert {after.host, after.member} == set(left)


# -- requests --------------------------------------------------------------------------------------


def test_a_request_without_a_byte_is_served_or_told_when_to_come_again(
    nodes: Cluster, split: Split, measured: Measured
) -> None:
    def ask(node: Node) -> Answer:
        return inside.chat(node, MODEL, tokens=TOKENS, timeout_s=AGAIN_S + 60)

    asked = [node for node in nodes.nodes for _ in range(2)]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(ask, node) for node in asked]
        wait(lambda: inside.busy(split.host, MODEL) >= 4, 30, "work", every_s=0.02)
        blow_at = kill(split.member, split.pids[3])
        ended = [one.result() for one in answers]
    measured("from the blow to the last answer", max(one.ended_at for one in ended) - blow_at)
    measured("were served", sum(one.good for one in ended), "requests")
    assert sum(one.ended_at > blow_at for one in ended) >= 4
    bad = [str(one) for one in ended if not (one.good or refused_well(one))]
    assert bad == []
    wait_split(nodes)


# -- who fails again and again ---------------------------------------------------------------------


def test_a_member_that_fails_three_times_is_left_out(
    nodes: Cluster, split: Split, measured: Measured
) -> None:
    began_at = time.monotonic()
    blows = 0
    found = split
    while (found.host, found.member) == (split.host, split.member):
        assert blows < 3, "it is asked again after three failures"
        kill(found.member, found.pids[3])
        blows += 1
        llama = found.pids[0]
        wait(lambda: gone(split.host, llama), 30, "the end of the engine", every_s=0.05)  # noqa: B023
        found = wait_split(nodes)
    measured("from the first of three failures to a split without it", time.monotonic() - began_at)
    assert blows == 3
    assert found.host is split.host
    assert found.member is split.spare
    plan = plan_of(split.host)
    assert any(
        split.member.name in line and "left out for" in line for line in plan.splitlines()
    ), plan
    assert find(nodes) is not None
