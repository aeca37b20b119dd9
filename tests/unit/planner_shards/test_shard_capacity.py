"""How many experts a node has room for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshd.config.settings import Config, Limit, ModelSettings, NodeSettings
from meshd.models.facts import GgufFacts
from meshd.planner.alternatives import exact_ways
from meshd.planner.fit import shapes
from meshd.planner.place import budgets_for, budgets_of
from meshd.planner.shard_capacity import capacity
from meshd.planner.shard_facts import shard_facts
from meshd.planner.view import Ceiling, NodeView
from tests.unit.worlds import GIB, MIB, config, facts, gpu, node, wants

# 32 layers of 1 GiB: 0.1 GiB for all and 0.9 GiB of 64 experts, of which a token uses 4.
WHOLE = replace(facts(layer_bytes=1024 * MIB, expert_share=0.9), experts=64, experts_used=4)


def room(
    world: NodeView,
    model: ModelSettings | None = None,
    whole: GgufFacts = WHOLE,
    settings: Config | None = None,
    current: int = 0,
) -> int:
    model = model or wants("m")
    settings = settings or config(model)
    budgets = budgets_of(world, settings)
    return capacity(whole, world, settings, model, budgets, current=current)


def test_a_shard_fills_the_gpu_and_leaves_room_for_a_conversation() -> None:
    """Of 24 GiB 3.2 GiB are the trunk, 1 GiB is a context of 8192 tokens; 0.45 GiB an expert."""
    assert room(node(gpu(free_gib=23))) == 36


def test_capacities_come_in_steps_of_a_sixteenth() -> None:
    rooms = {room(node(gpu(free_gib=gib / 10))) for gib in range(60, 230)}
    assert {one % 4 for one in rooms} == {0}
    assert len(rooms) >= 8


def test_what_is_said_to_fit_fits_whole_on_the_gpus() -> None:
    for gib in (8, 11, 14, 23):
        world = node(gpu(free_gib=gib))
        found = room(world)
        model = wants("m")
        budgets = budgets_for(world, config(model), model, budgets_of(world, config(model)))
        for experts, whole in ((found, True), (found + 8, False)):
            tried = tuple(shapes(WHOLE, model, modest=True))
            way = exact_ways(shard_facts(WHOLE, experts), world.gpus, tried, budgets, {})[0]
            layout, shape = way.layout, way.shape
            on_gpu = sum(layout.gpu_layers) > len(WHOLE.layers) and not layout.cpu_moe_layers
            assert (on_gpu and shape.context == 8192) is whole


def test_two_gpus_hold_more_than_one() -> None:
    one = room(node(gpu("GPU-1", 12)))
    both = room(node(gpu("GPU-1", 12), gpu("GPU-2", 12)))
    assert 0 < one < both


def test_without_a_gpu_it_is_the_ram_that_counts() -> None:
    assert room(node(ram_gib=24)) == 36
    # Beside a GPU it is not: experts in RAM are another way to serve, and an exact one.
    assert room(node(gpu(free_gib=4), ram_gib=24)) == 0


def test_whoever_has_room_for_all_says_so() -> None:
    assert room(node(ram_gib=64)) == 64


@pytest.mark.parametrize(
    "whole",
    [
        facts(),
        replace(WHOLE, undividable="its experts cannot be told apart"),
        replace(WHOLE, experts_used=60),
    ],
)
def test_where_no_shard_is_of_use_there_is_no_room_for_one(whole: GgufFacts) -> None:
    assert room(node(gpu(free_gib=23)), whole=whole) == 0


def test_the_trunk_alone_is_no_shard() -> None:
    assert room(node(gpu(free_gib=4))) == 0


def test_of_each_group_equally_many() -> None:
    grouped = replace(WHOLE, expert_groups=8, expert_groups_used=4)
    assert room(node(gpu(free_gib=23)), whole=grouped) == 32


def test_longer_contexts_that_were_asked_for_cost_experts_and_slots_that_were_not_do_not() -> None:
    world = node(gpu(free_gib=23))
    auto = room(world)
    assert room(world, wants("m", slots=1)) == auto
    assert room(world, wants("m", slots=4)) < auto
    assert room(world, wants("m", context=32768)) < auto
    assert room(world, wants("m", context=2048)) >= auto


def test_a_limit_and_a_ceiling_are_kept() -> None:
    world = node(ram_gib=24)
    model = wants("m")
    limited = config(model, node=NodeSettings(limit=Limit(ram_bytes=12 * GIB)))
    assert 0 < room(world, settings=limited) < room(world)
    ceiling = Ceiling(ram_bytes=10 * GIB, failed_bytes=20 * GIB)
    assert 0 < room(replace(world, ceilings={"m": ceiling})) < room(world)


def test_memory_that_comes_and_goes_changes_nothing() -> None:
    """A shard stays while it fits, also where it would not be begun; and a larger one is made only
    where there is room to spare.
    """
    edge = next(
        gib for gib in (x / 100 for x in range(1000, 2300)) if room(node(gpu(free_gib=gib))) == 24
    )
    below = node(gpu(free_gib=edge - 0.1))
    assert room(below) == 20
    assert room(below, current=24) == 24
    assert room(node(gpu(free_gib=edge + 0.1)), current=20) == 24
    far_below = node(gpu(free_gib=edge - 1.0))
    assert room(far_below, current=24) == 20


@given(st.integers(0, 96), st.integers(0, 96), st.sampled_from([0, 1, 2]))
def test_more_memory_is_never_less_room(one: int, other: int, gpus: int) -> None:
    def world(quarters: int) -> NodeView:
        cards = tuple(gpu(f"GPU-{n}", quarters / 4) for n in range(gpus))
        return node(*cards, ram_gib=quarters / 4 if not gpus else 32)

    less, more = (room(world(quarters)) for quarters in sorted((one, other)))
    assert less <= more


def test_a_node_without_gpus_serves_from_the_processor() -> None:
    world = node(gpu(), drivable=False, ram_gib=24)
    assert world.gpus == ()
    assert room(world) == room(node(ram_gib=24))
