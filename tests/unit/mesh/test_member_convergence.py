"""Random faults, then quiet: everyone ends with the same, and it is the truth."""

from __future__ import annotations

from random import Random

import pytest

from meshd.mesh.view import Status
from tests.unit.mesh.mesh_world import World, mesh_of


@pytest.mark.parametrize("seed", range(12))
def test_after_any_storm_all_views_are_exact_and_equal(seed: int) -> None:
    rng = Random(seed)
    world = mesh_of(9, cores=4, seed=seed)
    world.loss, world.duplicates = rng.choice([0.0, 0.2, 0.4]), 0.3
    lives = dict.fromkeys((f"n{number}" for number in range(12)), 1)
    for step in range(60):
        name = rng.choice(list(lives))
        deed = rng.randrange(6)
        if deed == 0 and name in world.nodes and len(world.nodes) > 3:
            world.kill(name)
        elif deed == 1 and name not in world.nodes:
            lives[name] += 1
            world.start(name, core=name in ("n0", "n1", "n2", "n3"), incarnation=lives[name])
        elif deed == 2 and not world.sides:
            world.split({name: rng.randrange(2) for name in lives})
        elif deed == 3 and world.sides:
            world.heal()
        elif deed == 4 and name in world.nodes:
            core = world.nodes[name].core
            world.nodes[name].publish(world.record(name, core=core, software=str(step)))
            world.nodes[name].publish_demand(b"%d" % step)
            world.run_effects(name)
        elif deed == 5 and name in world.nodes:
            for observer in set(world.nodes) - {name}:
                world.flap(observer, name, rng.uniform(0.1, 10))
        world.run(rng.uniform(0.0, 3.0))
    if world.sides:
        world.heal()
    world.loss = 0.0
    if not any(member.core for member in world.nodes.values()):
        # Without one there is no mesh: the driver makes a core of somebody.
        lives["n0"] += 1
        world.start("n0", core=True, incarnation=lives["n0"])
    world.run_until(lambda: world.exact() and world.equal(), within_s=75)
    digests = {member.view().digest for member in world.nodes.values()}
    assert len(digests) == 1
    for member in world.nodes.values():
        said = {m.id: m.record for m in member.view().members}
        for name, other in world.nodes.items():
            own = other.view().member(other.id)
            assert own is not None
            assert said[other.id] == own.record, name
    world.run(60)
    puts = world.puts
    world.run(120)
    assert world.exact()
    assert world.puts == puts


def test_a_fifth_of_all_messages_lost_buries_nobody() -> None:
    world = mesh_of(12)
    world.loss = 0.2
    world.run(600)
    assert world.exact()
    assert all(member.incarnation == 1 for member in world.nodes.values())


def test_a_hung_node_that_wakes_up_says_that_it_lives() -> None:
    world = mesh_of(6)
    world.hang("n5")
    rest = set(world.nodes) - {"n5"}
    world.run_until(lambda: world.exact(rest), 9)
    world.hung.clear()
    member = world.nodes["n5"]
    for other in rest:
        world._token(other, "n5", up=True)
    world.run_effects("n5")
    world.run_until(world.exact, 3)
    assert member.incarnation == 2


def test_two_halves_of_a_larger_mesh_heal_without_a_storm() -> None:
    world = World(5)
    count = 60
    for number in range(count):
        world.start(f"n{number}", core=number < 6)
    world.run_until(world.exact, 10)
    world.split({f"n{number}": number % 2 for number in range(count)})
    world.run(60)
    assert all(set(world.sees(name).values()) == {Status.ALIVE} for name in world.nodes)
    assert all(len(world.sees(name)) == count / 2 for name in world.nodes)
    puts, size = world.puts, world.bytes
    world.heal()
    healed_s = world.run_until(lambda: world.exact() and world.equal(), 15)
    assert healed_s < 10
    # One refutation each, of some 250 bytes, and the comparisons that carry them.
    assert world.puts - puts <= 1.2 * count
    assert (world.bytes - size) / count < 100_000
