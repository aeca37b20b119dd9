from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wire.mesh.ethernet import Ethernet, ethernet, obstacle
from tests.wire.mesh.nodes import MeshNode, Nodes, free_udp_port, together, until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    made = Nodes(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def three(nodes: Nodes) -> list[MeshNode]:
    """Three nodes on loopback, all cores, who know one peer in common."""
    seed = f"127.0.0.1:{free_udp_port()}"
    made = [nodes.node("a", listen=seed, peers=[seed])]
    made += [nodes.node(name, peers=[seed]) for name in ("b", "c")]
    for node in made:
        node.start()
    until(lambda: together(*made), 30, "three nodes see each other")
    everybody = {node.id for node in made}
    until(lambda: all(node.cores() == everybody for node in made), 15, "all three are cores")
    return made


@pytest.fixture
def wire_ethernet() -> Iterator[Ethernet]:
    reason = obstacle()
    if reason:
        pytest.skip(reason)
    with ethernet() as network:
        yield network
