"""A mesh over a network that can be cut, and one that nobody configured."""

from __future__ import annotations

from tests.wire.mesh.ethernet import Ethernet
from tests.wire.mesh.nodes import MeshNode, Nodes, together, until


def test_halves_that_were_apart_are_one_again(nodes: Nodes, wire_ethernet: Ethernet) -> None:
    made: list[MeshNode] = []
    for number in range(4):
        space, address = wire_ethernet.host(switch=number % 2)
        seed = "10.93.38.1"
        made.append(nodes.node(f"n{number}", listen="0.0.0.0:9338", namespace=space, peers=[seed]))
        assert address.startswith("10.93.38.")
    for node in made:
        node.start()
    until(lambda: together(*made), 30)
    until(lambda: all(len(node.cores()) == 4 for node in made), 20)
    left, right = made[0::2], made[1::2]
    wire_ethernet.part()
    until(lambda: together(*left) and together(*right), 20, "each half knows that it is alone")
    right[0].tell(publish="said while apart")
    until(lambda: right[1].name_of(right[0].id) == "said while apart", 5)
    wire_ethernet.join()
    until(lambda: together(*made), 20, "one mesh again")
    until(lambda: all(node.name_of(right[0].id) == "said while apart" for node in made), 15)


def test_nodes_on_a_lan_find_each_other(nodes: Nodes, wire_ethernet: Ethernet) -> None:
    made = []
    for number in range(3):
        space, _ = wire_ethernet.host(switch=number % 2)
        made.append(nodes.node(f"n{number}", listen="0.0.0.0:9338", namespace=space, lan=True))
    for node in made:
        node.start()
    until(lambda: together(*made), 40)
