"""What a dead node's configuration asked of the mesh is asked still; a node that left took it."""

from __future__ import annotations

from dataclasses import replace

from meshd.mesh.record import Wish
from meshd.planner.wishes import wanted
from tests.unit.mesh.mesh_world import World, mesh_of


def with_a_wish(world: World, name: str) -> None:
    record = world.record(name)
    world.nodes[name].publish(replace(record, wishes=(Wish("m", "m.gguf"),)))
    world.run_effects(name)
    world.run(1)


def asked(world: World, name: str) -> list[str]:
    return [one.model for one in wanted(world.nodes[name].view())]


def test_a_dead_nodes_wishes_stay_for_everyone_and_for_newcomers() -> None:
    world = mesh_of(5, cores=3, seed=1)
    with_a_wish(world, "n4")
    assert asked(world, "n0") == ["m"]
    world.kill("n4")
    world.run_until(lambda: world.exact(), within_s=15)
    assert asked(world, "n0") == ["m"]
    dead = world.nodes["n0"].view().dead
    assert [record.name for record in dead] == ["n4"]
    world.start("n7")
    world.run_until(lambda: asked(world, "n7") == ["m"], within_s=15)
    digests = {member.view().digest for member in world.nodes.values()}
    assert len(digests) == 1


def test_back_from_the_dead_it_speaks_for_itself_again() -> None:
    world = mesh_of(4, cores=3, seed=2)
    with_a_wish(world, "n3")
    world.kill("n3")
    world.run_until(lambda: world.exact(), within_s=15)
    world.start("n3", incarnation=2)
    world.run_until(lambda: world.exact() and world.equal(), within_s=15)
    assert world.nodes["n0"].view().dead == ()
    assert asked(world, "n0") == []


def test_who_leaves_takes_its_wishes_along() -> None:
    world = mesh_of(4, cores=3, seed=3)
    with_a_wish(world, "n3")
    world.nodes["n3"].leave()
    world.run_effects("n3")
    world.run(1)
    assert asked(world, "n0") == []
    assert world.nodes["n0"].view().dead == ()
