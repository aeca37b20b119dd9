"""The exact ways of one node alone: what is found, what is taken, why the others lost."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import assume, given
from hypothesis import strategies as st

from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.alternatives import ExactWay, exact_ways, kv_bytes, lost
from meshd.planner.fit import Shape, shape_memory, shapes
from meshd.planner.layout import RAM, Budgets, without_experts
from meshd.planner.pace import Pace
from meshd.planner.plan import Code, Considered, Layout, Strategy
from tests.unit.worlds import GIB, MIB, facts, gpu, wants

# 32 layers of 1 GiB, 0.9 GiB of it 64 experts, of which a token uses 4.
MIXTURE = replace(facts(layer_bytes=1024 * MIB, expert_share=0.9), experts=64, experts_used=4)
CARD = gpu(free_gib=23)
SLOW = {"GPU-1": Pace(1e12, 1e13), RAM: Pace(50e9, 1e12)}


def ways(
    of: GgufFacts,
    budgets: Budgets,
    gpus: tuple[Gpu, ...] = (CARD,),
    paces: dict[str, Pace] | None = None,
) -> tuple[ExactWay, ...]:
    return exact_ways(of, gpus, shapes(of, wants("m"), modest=True), budgets, paces or SLOW)


def losers(of: GgufFacts, budgets: Budgets, gpus: tuple[Gpu, ...]) -> tuple[Considered, ...]:
    tried = tuple(shapes(of, wants("m"), modest=True))
    found = exact_ways(of, gpus, tried, budgets, SLOW)
    return lost(of, gpus, tried, budgets, found, "me")


def test_what_fits_on_the_gpu_is_not_looked_at_further() -> None:
    budgets = Budgets({"GPU-1": 80 * GIB, RAM: 64 * GIB})
    assert [way.layout for way in ways(MIXTURE, budgets)] == [Layout(("GPU-1",), (33,))]
    assert losers(MIXTURE, budgets, (CARD,)) == ()


def test_a_mixture_has_four_other_ways_the_fastest_first() -> None:
    found = ways(MIXTURE, Budgets({"GPU-1": 23 * GIB, RAM: 64 * GIB}))
    fewest, layers, everything, ram = (way.layout for way in found)
    assert 0 < fewest.cpu_moe_layers < 32
    assert sum(layers.gpu_layers) < 32
    assert not layers.cpu_moe_layers
    assert everything.cpu_moe_layers == 32
    assert ram == Layout()
    assert [way.tokens_s for way in found] == sorted((way.tokens_s for way in found), reverse=True)


@given(free_gib=st.integers(4, 40), ram_gib=st.integers(4, 80))
def test_as_few_experts_leave_as_can(free_gib: int, ram_gib: int) -> None:
    """And what stays of the GPU's memory would not hold the experts of another layer."""
    budgets = Budgets({"GPU-1": free_gib * GIB, RAM: ram_gib * GIB})
    found = [way for way in ways(MIXTURE, budgets) if 0 < way.layout.cpu_moe_layers < 32]
    assume(found)
    way = found[0]
    fewer = without_experts(MIXTURE, (CARD,), budgets, way.layout.cpu_moe_layers - 1)
    assert not budgets.hold(shape_memory(MIXTURE, fewer, way.shape))
    used = next(use.total_bytes for use in way.shape.memory if use.device == "GPU-1")
    assert free_gib * GIB - used < MIXTURE.layers[0].expert_bytes


@given(free=st.lists(st.integers(1, 30), min_size=2, max_size=4), ram_gib=st.integers(8, 80))
def test_over_several_gpus_none_that_fits_is_passed_over(free: list[int], ram_gib: int) -> None:
    """Halving finds what trying all of them finds."""
    gpus = tuple(gpu(f"GPU-{number}") for number in range(len(free)))
    room = {one.id: gib * GIB for one, gib in zip(gpus, free, strict=True)}
    budgets = Budgets({**room, RAM: ram_gib * GIB})
    found = ways(MIXTURE, budgets, gpus)
    assume(not found or found[0].layout.cpu_moe_layers or sum(found[0].layout.gpu_layers) < 33)
    shape = Shape(8192, 4)
    caches = kv_bytes(MIXTURE, shape)
    held = [
        moved
        for moved in range(1, 33)
        if budgets.hold(
            shape_memory(MIXTURE, without_experts(MIXTURE, gpus, budgets, moved, caches), shape)
        )
    ]
    moved = [way.layout.cpu_moe_layers for way in found if way.layout.cpu_moe_layers and way.good]
    assert min(moved, default=None) == min(held, default=None)


def test_two_gpus_share_what_is_left_of_the_weights() -> None:
    """Divided by layers alone, the second would have to hold half of all experts, and cannot."""
    two = (gpu("GPU-1"), gpu("GPU-2"))
    budgets = Budgets({"GPU-1": 12 * GIB, "GPU-2": 12 * GIB, RAM: 64 * GIB})
    way = next(way for way in ways(MIXTURE, budgets, two) if way.layout.cpu_moe_layers)
    assert way.layout.cpu_moe_layers < 16
    first, second = way.layout.gpu_layers
    assert first > second
    by_layers = Layout(way.layout.gpus, (17, 16), way.layout.cpu_moe_layers)
    assert not budgets.hold(shape_memory(MIXTURE, by_layers, way.shape))


def test_layers_leave_where_waiting_for_experts_costs_more() -> None:
    """A layer that is little but its experts is not worth a visit of the processor for them."""
    bare = replace(facts(layer_bytes=1024 * MIB, expert_share=0.98), experts=64, experts_used=8)
    budgets = Budgets({"GPU-1": 20 * GIB, RAM: 64 * GIB})
    for ram_bytes_s, experts in ((20e9, True), (200e9, False)):
        paces = {"GPU-1": Pace(1e12, 1e13), RAM: Pace(ram_bytes_s, 1e12)}
        best = ways(MIXTURE if experts else bare, budgets, paces=paces)[0].layout
        assert bool(best.cpu_moe_layers) is experts
        assert best.gpus


def test_a_gpu_is_left_idle_only_for_much() -> None:
    """It would have computed the prompts."""
    few = replace(MIXTURE, experts_used=1)
    budgets = Budgets({"GPU-1": 6 * GIB, RAM: 64 * GIB})
    for ram_bytes_s, alone in ((50e9, False), (2e12, True)):
        found = ways(few, budgets, paces={"GPU-1": Pace(1e12, 1e13), RAM: Pace(ram_bytes_s, 1e12)})
        assert (found[0].layout == Layout()) is alone
    near = next(way for way in found if way.layout.gpus)
    assert found[0].tokens_s >= 1.2 * near.tokens_s


def test_a_good_context_goes_before_speed() -> None:
    budgets = Budgets({"GPU-1": 5 * GIB, RAM: 64 * GIB})
    found = ways(MIXTURE, budgets)
    assert found[0].good
    assert [way.good for way in found] == sorted((way.good for way in found), reverse=True)


def test_each_that_lost_has_a_reason() -> None:
    found = losers(MIXTURE, Budgets({"GPU-1": 23 * GIB, RAM: 30 * GIB}), (CARD,))
    said = {(one.strategy, one.reason.code): one for one in found}
    layers = said[Strategy.SOLO_OFFLOAD, Code.SLOWER]
    assert layers.tokens_s > 0
    assert "in RAM" in layers.reason.text
    whole = said[Strategy.SOLO_GPU, Code.NO_MEMORY].reason.text
    assert "whole on GPUs: needs 3" in whole
    assert "23.0 to spare" in whole
    assert "30.0 to spare" in said[Strategy.SOLO_CPU, Code.NO_MEMORY].reason.text


def test_where_nothing_fits_there_is_no_table() -> None:
    budgets = Budgets({"GPU-1": GIB, RAM: GIB})
    assert ways(MIXTURE, budgets) == ()
    assert losers(MIXTURE, budgets, (CARD,)) == ()


def test_shapes_have_what_they_take() -> None:
    budgets = Budgets({"GPU-1": 23 * GIB, RAM: 64 * GIB})
    for way in ways(MIXTURE, budgets):
        bare = Shape(way.shape.context, way.shape.slots)
        assert way.shape.memory == shape_memory(MIXTURE, way.layout, bare)
        assert budgets.hold(way.shape.memory)
