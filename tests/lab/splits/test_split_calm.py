"""What must not disturb a split: brains that restart, rude neighbours, a member that is slow."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.inside import Load, socket_in
from tests.lab.node import Node, wait
from tests.lab.splits.conftest import TOKENS
from tests.lab.splits.split import MODEL, Split, find, kill, plan_of
from tests.lab.streams import resumed, text_of

Measured = Callable[..., None]
PROBES = 300


def assert_untouched(nodes: Cluster, split: Split, loads: Sequence[Load], said: str) -> None:
    """No process of the split is another, and no stream was broken, or wrong."""
    wait(lambda: find(nodes), 30, "a split that all speak of")
    after = find(nodes)
    assert after is not None
    assert (after.host.name, after.member.name) == (split.host.name, split.member.name)
    assert after.pids == split.pids
    answers = [answer for load in loads for answer in load.answers]
    assert answers
    assert [str(one) for one in answers if not one.good or resumed(one)] == []
    assert {text_of(one) for one in answers} == {said}


@contextmanager
def streams(split: Split) -> Iterator[Load]:
    """Streams through the spare node, one after the other."""
    with inside.load(split.spare, MODEL, stream=True, tokens=TOKENS, pause_s=0) as (load,):
        wait(lambda: load.answers, 30, "a first answer")
        yield load


@pytest.mark.parametrize("which", ["host", "member"])
@pytest.mark.parametrize("how", ["kill -9", "systemctl restart"])
def test_a_brain_that_goes_touches_nothing(
    nodes: Cluster, split: Split, said: str, measured: Measured, how: str, which: str
) -> None:
    node = split.host if which == "host" else split.member
    before = node.main_pid("meshd")
    with streams(split) as load:
        blow_at = time.monotonic()
        if how == "kill -9":
            kill(node, before)
        else:
            node.systemctl("restart", "meshd", timeout_s=60)
        wait(
            lambda: node.main_pid("meshd") not in (0, before) and node.active("meshd"),
            60,
            "another brain",
        )
        back_at = time.monotonic()
        measured("until the brain is back", back_at - blow_at)
        wait(lambda: find(nodes), 30, "a split that all speak of")
        there_at = time.monotonic()
        wait(lambda: load.last_began_at > there_at, 60, "a stream that began afterwards")
    assert_untouched(nodes, split, [load], said)


def test_a_rude_neighbour_is_sent_away(
    nodes: Cluster, split: Split, said: str, measured: Measured
) -> None:
    door = (split.member.address, split.door_port)
    idle = [socket_in(split.spare.pid, door, 5) for _ in range(8)]
    try:
        with streams(split) as load:
            began_at = time.monotonic()
            for number in range(PROBES):
                be_rude(split.spare, door, number)
            measured(f"{PROBES} rude probes", time.monotonic() - began_at)
            done_at = time.monotonic()
            wait(lambda: load.last_began_at > done_at, 60, "a stream that began afterwards")
    finally:
        for one in idle:
            one.close()
    assert_untouched(nodes, split, [load], said)


def be_rude(node: Node, door: tuple[str, int], number: int) -> None:
    """Connect and go; garbage; the hello of an rpc client, and go; a request for a page."""
    words = (b"", bytes(range(256)) * 64, b"\x0e" + (24).to_bytes(8, "little") + bytes(24), b"GET")
    with contextlib.suppress(OSError), socket_in(node.pid, door, 5) as rude:
        rude.sendall(words[number % len(words)])
        if number % 2:
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


@pytest.mark.timeout(180)
def test_a_member_that_is_slow_gives_no_false_alarm(
    nodes: Cluster, split: Split, measured: Measured
) -> None:
    prompt = "Tell me more. " * 200
    with slow(split.member, split.pids[3]):
        answer = inside.chat(split.spare, MODEL, tokens=8, prompt=prompt, timeout_s=150)
    took_s = answer.ended_at - answer.began_at
    measured("a prompt of most of the context, on a member with a tenth of a processor", took_s)
    assert answer.good, str(answer)
    after = find(nodes)
    assert after is not None
    assert after.pids == split.pids
    assert "left out for" not in plan_of(split.host)


@contextmanager
def slow(node: Node, pid: int) -> Iterator[None]:
    """A process has a tenth of the time; a lab cannot limit a cgroup's share."""
    pulse = (
        'touch /run/slow; while [ -e /run/slow ] && kill -STOP "$1"; '
        'do sleep 0.45; kill -CONT "$1"; sleep 0.05; done'
    )
    pulsing = node.start(["sh", "-c", pulse, "sh", str(pid)], stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        node.run(["rm", "-f", "/run/slow"], check=True)
        pulsing.wait(10)
