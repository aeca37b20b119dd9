"""A model that fits no node of the mesh is served by two of them, and says what it always says."""

from __future__ import annotations

from collections.abc import Callable

from tests.lab import inside
from tests.lab.cluster import Cluster
from tests.lab.node import Node
from tests.lab.splits.conftest import TOKENS
from tests.lab.splits.split import MODEL, Split, find
from tests.lab.streams import text_of

Measured = Callable[..., None]


def test_it_comes_up_after_all_have_started(
    booted: tuple[Cluster, float], said: str, measured: Measured
) -> None:
    nodes, started_s = booted
    measured("from the start of all nodes to the first answer of a split", started_s)
    found = find(nodes)
    assert found is not None
    for node in nodes.nodes:
        answer = inside.chat(node, MODEL, tokens=TOKENS, stream=True)
        assert answer.good, f"through {node.name}: {answer}"
        assert answer.node == found.host.name
        assert text_of(answer) == said, f"through {node.name}"


def test_host_and_member_say_so(split: Split) -> None:
    host = split.host.run(["meshd", "status"]).stdout
    assert f"{MODEL}: ready, pipeline over {split.member.name}, context 1024 x 16 slots" in host
    member = split.member.run(["meshd", "status"]).stdout
    assert f"layers of {MODEL} to {split.host.name}" in member
    assert f"{MODEL}: ready on {split.host.name}" in member
    spare = split.spare.run(["meshd", "status"]).stdout
    assert "lends" not in spare


def test_only_loopback_and_the_mesh_s_tls_carry_it(split: Split) -> None:
    host, member = listening(split.host), listening(split.member)
    llama, host_guard, member_guard, rpc = split.pids
    assert [address for address, pid in member if pid == rpc] == [f"127.0.0.1:{split.rpc_port}"]
    assert [address for address, pid in host if pid == llama] == [], "it has a Unix socket only"
    assert all(address.startswith("127.0.0.1:") for address, pid in host if pid == host_guard)
    doors = [address for address, pid in member if pid == member_guard]
    assert {address.rpartition(":")[2] for address in doors} == {str(split.door_port)}
    # Every connection of the split that leaves a node ends at that door.
    links = connections(split.host, host_guard)
    away = {there for there in links if not there.startswith("127.0.0.1:")}
    assert away == {f"{split.member.address}:{split.door_port}"}
    assert all(one.startswith("127.0.0.1:") for one in connections(split.host, llama))
    assert all(one.startswith("127.0.0.1:") for one in connections(split.member, rpc))
    # A client that speaks no TLS is told nothing.
    asked = split.spare.run(
        [
            *("timeout", "5", "curl", "-s", "--http0.9", "--max-time", "3"),
            f"http://{split.member.address}:{split.door_port}/",
        ]
    )
    assert asked.stdout == ""


def listening(node: Node) -> list[tuple[str, int]]:
    """Addresses where TCP is listened on in a node, and by whom."""
    return [(words[3], pid) for words, pid in _sockets(node, "-ltnpH")]


def connections(node: Node, pid: int) -> list[str]:
    """The other ends of a process' TCP connections."""
    return [
        words[4].removeprefix("[::ffff:").replace("]:", ":")
        for words, owner in _sockets(node, "-tnpH", "state", "established")
        if owner == pid
    ]


def _sockets(node: Node, *arguments: str) -> list[tuple[list[str], int]]:
    found = []
    for line in node.run(["ss", *arguments], check=True).stdout.splitlines():
        pid = line.partition("pid=")[2].partition(",")[0]
        words = line.split()
        # With a state asked for, `ss` leaves its column out.
        found.append((words if words[0].isalpha() else ["", *words], int(pid or 0)))
    return found
