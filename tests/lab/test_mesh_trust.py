"""Who is thrown out is out within seconds, and a stranger on the same wire gets nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshd.mesh.secret import new_secret
from tests.lab import cluster, inside, mesh
from tests.lab.cluster import Cluster, serving, statuses
from tests.lab.conftest import tracked_cluster
from tests.lab.node import Node, wait

Measured = Callable[[str, float], None]

OBEYED_S = 10.0
# A client that trusts nobody in particular and shows no certificate, or the stranger's own.
KNOCK = """
import socket, ssl, sys
address, tls = sys.argv[1], sys.argv[2]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
if tls:
    context.load_cert_chain(tls + "/cert.pem", tls + "/key.pem")
try:
    with socket.create_connection((address, 9338), 5) as raw, context.wrap_socket(raw) as door:
        door.sendall(b"GET /mesh/routes HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
        print("got", door.recv(4096))
except OSError as error:
    print("refused", error)
"""


@pytest.fixture(scope="module")
def booted(lowerdir: str, scratch: Path) -> Iterator[Cluster]:
    """ada, bob and cleo in one mesh; eve with a secret of her own beside them."""
    with tracked_cluster(["ada", "bob", "cleo", "eve"], lowerdir, scratch) as nodes:
        eve = nodes["eve"]
        nodes.nodes.remove(eve)
        nodes.configure(eve, stranger_config(nodes), secret=new_secret())
        nodes.start(nodes.alike(cluster.config(nodes.addresses[:2], lan=True)), settle=False)
        eve.systemctl("start", "mesh.target", timeout_s=120)
        nodes.settled()
        nodes.strangers.append(eve)
        yield nodes


def stranger_config(nodes: Cluster) -> str:
    """The same peers, and the same LAN."""
    return cluster.config(nodes.addresses[:2], lan=True)


def test_a_stranger_is_in_a_mesh_of_its_own(booted: Cluster) -> None:
    (eve,) = booted.strangers
    mesh.settled(eve)
    assert statuses(eve) == {"eve": "alive"}
    wait(lambda: serving(eve) == {"eve": frozenset(cluster.MODELS)}, 60, "eve to serve both models")
    for node in booted.nodes:
        assert "eve" not in statuses(node)
    # Her gateway serves what she runs; ours never ask her.
    assert inside.chat(eve, "tiny").node == "eve"
    for node in booted.nodes:
        assert inside.chat(node, "tiny").node in {one.name for one in booted.nodes}


@pytest.mark.parametrize("tls", ["", "/run/mesh/tls"])
def test_a_stranger_gets_nothing_at_the_door(booted: Cluster, tls: str) -> None:
    (eve,) = booted.strangers
    for node in booted.nodes:
        said = knock(eve, node, tls)
        assert said.startswith(("refused", "got b''")), said
    ada, bob = booted.nodes[:2]
    assert "200 OK" in knock(ada, bob, "/run/mesh/tls"), "a member gets in by the same words"


def knock(by: Node, at: Node, tls: str) -> str:
    return by.run(["python3", "-c", KNOCK, at.address, tls]).stdout


def test_garbage_from_a_stranger_disturbs_nobody(booted: Cluster) -> None:
    (eve,) = booted.strangers
    ada = booted.nodes[0]
    pids = processes(booted)
    flood = (
        "import os, socket, sys\n"
        "udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for size in range(3000):\n"
        "    udp.sendto(os.urandom(1 + size % 1400), (sys.argv[1], 9338))\n"
        "for _ in range(100):\n"
        "    with socket.create_connection((sys.argv[1], 9338), 5) as door:\n"
        "        try: door.sendall(os.urandom(4096))\n"
        "        except OSError: pass\n"
    )
    with inside.watch(booted.nodes, statuses) as seen, inside.load(ada, "tiny", "small") as loads:
        eve.run(["python3", "-c", flood, ada.address], check=True, timeout_s=60)
        booted.settled()
    for load in loads:
        assert not load.failed, [str(one) for one in load.failed]
    for views in seen.seen.values():
        assert all(set(view.values()) <= {"alive"} for _, view in views), views
    assert processes(booted) == pids


def processes(nodes: Cluster) -> dict[tuple[str, str], int]:
    units = ("meshd", "mesh-gateway")
    return {(node.name, unit): node.main_pid(unit) for node in nodes.nodes for unit in units}


def test_a_revoked_node_is_out_for_all_within_seconds(booted: Cluster, measured: Measured) -> None:
    booted.settled()
    # Who is thrown out serves something, which another has to take over.
    (out,) = booted.where("tiny")
    stay = [node for node in booted.nodes if node is not out]
    chief = stay[0]
    engines = booted.engines(stay)
    booted.wait_served("tiny", "small", by=booted.nodes)
    with (
        inside.watch(stay, statuses) as seen,
        inside.watch(stay, lambda node: refused(out, [node]), every_s=0.2) as doors,
        inside.load(stay[1], "small") as (load,),
    ):
        began_at = time.monotonic()
        chief.run(["meshd", "mesh", "revoke", out.name, "--yes"], check=True)
        booted.settled(stay)
        wait(lambda: refused(out, stay), OBEYED_S, "the revoked node to be refused", every_s=0.1)
    for node in stay:
        unlisted_at = seen.first(node.name, lambda view: out.name not in view, began_at)
        refused_at = doors.first(node.name, bool, began_at)
        assert unlisted_at is not None
        assert refused_at is not None
        measured(f"meshd mesh revoke, to not listed by {node.name}", unlisted_at - began_at)
        measured(f"meshd mesh revoke, to refused by {node.name}", refused_at - began_at)
        assert max(unlisted_at, refused_at) - began_at <= OBEYED_S
    if out.name not in {name for name, model in engines if model == "small"}:
        assert not load.failed, [str(one) for one in load.failed]
    kept = booted.engines(stay)
    assert {key: pid for key, pid in kept.items() if key in engines} == engines
    # It stays so when it comes back, and when they do.
    out.systemctl("restart", "meshd", timeout_s=60)
    chief.systemctl("restart", "meshd", timeout_s=60)
    booted.settled(stay)
    out.wait(lambda: inside.control(out, "/v1/status"), 30, "the revoked node's own brain")
    assert refused(out, stay)
    assert all(out.name not in statuses(node) for node in stay)


def refused(out: Node, stay: list[Node]) -> bool:
    """Whether none of these lets that one in at the gateways' door."""
    said = [knock(out, node, "/run/mesh/tls") for node in stay]
    return all(one.startswith(("refused", "got b''")) for one in said)
