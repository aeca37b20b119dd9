from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshd.config.settings import Limit, NodeSettings, Reserve, Role
from meshd.planner import fit
from meshd.planner.layout import RAM
from meshd.planner.needs import needs
from meshd.planner.place import budgets_of, offer, plan, prompt_cache_bytes
from meshd.planner.plan import Code, Decision, Strategy
from meshd.planner.view import Running
from tests.unit.worlds import GIB, MIB, config, facts, gpu, node, view, wants


def only(planned: object) -> Decision:
    (decision,) = planned.decisions  # type: ignore[attr-defined]
    return decision


def test_a_model_that_fits_a_gpu_lies_there_as_a_whole() -> None:
    decision = only(plan(view(node(gpu(), models={"m": facts()})), config(wants("m"))))
    assert decision.strategy is Strategy.SOLO_GPU
    assert decision.layout.gpus == ("GPU-1",)
    assert decision.layout.gpu_layers == (33,)
    assert decision.slots == 4
    assert decision.context >= 8192


def test_two_gpus_share_what_one_cannot_hold() -> None:
    world = node(gpu("GPU-1", 3), gpu("GPU-2", 4), models={"m": facts()})
    decision = only(plan(view(world), config(wants("m", context=2048, slots=1))))
    assert decision.strategy is Strategy.SOLO_GPU
    assert set(decision.layout.gpus) == {"GPU-1", "GPU-2"}
    assert sum(decision.layout.gpu_layers) == 33


def test_experts_leave_for_ram_before_layers_do() -> None:
    world = node(gpu(free_gib=4), models={"m": facts(expert_share=0.8)}, ram_gib=32)
    decision = only(plan(view(world), config(wants("m", context=4096, slots=1))))
    assert decision.strategy is Strategy.SOLO_OFFLOAD
    assert decision.layout.cpu_moe_layers > 0
    assert sum(decision.layout.gpu_layers) == 33


def test_a_dense_model_leaves_layers_in_ram() -> None:
    world = node(gpu(free_gib=3), models={"m": facts()}, ram_gib=32)
    decision = only(plan(view(world), config(wants("m", context=2048, slots=1))))
    assert decision.strategy is Strategy.SOLO_OFFLOAD
    assert 0 < sum(decision.layout.gpu_layers) < 32
    assert any("of 32 layers in RAM" in reason.text for reason in decision.reasons)


def test_without_a_gpu_the_processor_serves() -> None:
    decision = only(plan(view(node(models={"m": facts()})), config(wants("m"))))
    assert decision.strategy is Strategy.SOLO_CPU
    assert [use.device for use in decision.memory] == [RAM]
    assert Code.NO_GPU in {reason.code for reason in decision.reasons}


def test_a_gpu_that_the_engine_cannot_use_is_said() -> None:
    world = node(gpu(), models={"m": facts()}, drivable=False)
    decision = only(plan(view(world), config(wants("m"))))
    assert decision.strategy is Strategy.SOLO_CPU
    assert Code.NO_GPU_BACKEND in {reason.code for reason in decision.reasons}


def test_what_does_not_fit_waits_with_numbers_and_a_way_out() -> None:
    world = node(models={"m": facts()}, ram_gib=3)
    decision = only(plan(view(world), config(wants("m"))))
    assert not decision.served
    assert decision.blockers[-1].code is Code.NO_MEMORY
    assert "GiB" in decision.blockers[-1].text
    assert decision.next_step


def test_context_and_slots_shrink_before_a_model_waits() -> None:
    roomy = only(plan(view(node(models={"m": facts()}, ram_gib=64)), config(wants("m"))))
    tight = only(plan(view(node(models={"m": facts()}, ram_gib=7)), config(wants("m"))))
    assert tight.served
    assert tight.context * tight.slots < roomy.context * roomy.slots
    assert Code.TRIMMED in {reason.code for reason in tight.reasons}


def test_what_is_asked_for_is_given_or_refused_never_trimmed() -> None:
    world = node(models={"m": facts()}, ram_gib=7)
    decision = only(plan(view(world), config(wants("m", context=32768, slots=4))))
    assert not decision.served


@pytest.mark.parametrize(
    ("world", "settings_", "code"),
    [
        (node(models={"m": facts()}, engine=False), NodeSettings(), Code.NO_ENGINE),
        (node(models={}), NodeSettings(), Code.NO_MODEL),
        (node(models={"m": facts()}), NodeSettings(role=Role.CLIENT), Code.ROLE),
        (node(models={"m": facts()}), NodeSettings(role=Role.STANDBY), Code.ROLE),
        (
            node(models={"m": facts()}, gpu_problem="GPU-9 is not there"),
            NodeSettings(),
            Code.GPU_PINNED_MISSING,
        ),
        (
            node(models={"m": replace(facts(), mmproj=True)}),
            NodeSettings(),
            Code.NOT_A_LANGUAGE_MODEL,
        ),
    ],
)
def test_what_rules_a_model_out_is_named(world: object, settings_: object, code: Code) -> None:
    decision = only(plan(view(world), config(wants("m"), node=settings_)))  # type: ignore[arg-type]
    assert decision.strategy is Strategy.WAIT
    assert decision.blockers[0].code is code
    assert decision.next_step


def test_a_context_beyond_training_is_refused_with_the_limit() -> None:
    decision = only(
        plan(view(node(models={"m": facts(train=4096)})), config(wants("m", context=8192)))
    )
    assert decision.blockers[0].code is Code.CONTEXT_TOO_LONG
    assert "4096" in decision.next_step


def running(decision: Decision, *, resident: bool) -> tuple[Running, ...]:
    return (Running(decision, "m:1", resident=resident),)


def test_a_running_model_stays_when_free_memory_moves() -> None:
    first = only(plan(view(node(gpu(), models={"m": facts()})), config(wants("m"))))
    taken_gib = first.memory[0].total_bytes / GIB
    loaded = node(
        gpu(free_gib=23 - taken_gib - 0.7),
        models={"m": facts()},
        running=running(first, resident=True),
    )
    again = only(plan(view(loaded), config(wants("m"))))
    assert (again.layout, again.context, again.slots) == (first.layout, first.context, first.slots)
    assert again.reasons[0].code is Code.KEPT
    third = only(
        plan(view(replace(loaded, running=running(again, resident=True))), config(wants("m")))
    )
    assert third == again


def test_a_changed_wish_is_planned_afresh_with_the_memory_it_had() -> None:
    world = node(gpu(), models={"m": facts()})
    first = only(plan(view(world), config(wants("m", slots=1, context=8192))))
    taken_gib = first.memory[0].total_bytes / GIB
    loaded = node(
        gpu(free_gib=23 - taken_gib), models={"m": facts()}, running=running(first, resident=True)
    )
    again = only(plan(view(loaded), config(wants("m", slots=2, context=8192))))
    assert again.slots == 2
    assert again.strategy is Strategy.SOLO_GPU


@pytest.mark.parametrize("loaded", [0.0, 0.5, 1.0])
def test_what_is_changed_while_it_loads_stays_on_its_gpu(loaded: float) -> None:
    models = {"m": facts(layer_bytes=512 * MIB)}
    world = node(gpu(free_gib=24), models=models, ram_gib=64)
    first = only(plan(view(world), config(wants("m", slots=1, context=8192))))
    assert first.strategy is Strategy.SOLO_GPU
    free_gib = 24 - loaded * first.memory[0].total_bytes / GIB
    half = (Running(first, "m:1", resident=False, loading=True),)
    again = node(gpu(free_gib=free_gib), models=models, ram_gib=64, running=half)
    second = only(plan(view(again), config(wants("m", slots=2, context=8192))))
    assert second.strategy is Strategy.SOLO_GPU
    assert second.memory[0].total_bytes <= 24 * GIB - Reserve().vram_bytes


def test_a_replaced_file_is_planned_afresh() -> None:
    world = node(gpu(), models={"m": facts()})
    first = only(plan(view(world), config(wants("m"))))
    other = (Running(first, "m:0", resident=False),)
    again = only(plan(view(replace(world, running=other)), config(wants("m"))))
    assert Code.KEPT not in {reason.code for reason in again.reasons}


def test_a_gpu_that_vanished_ends_what_ran_on_it() -> None:
    first = only(plan(view(node(gpu(), models={"m": facts()})), config(wants("m"))))
    world = node(models={"m": facts()}, running=running(first, resident=True))
    assert only(plan(view(world), config(wants("m")))).strategy is Strategy.SOLO_CPU


def test_running_models_are_not_crowded_out_by_new_ones() -> None:
    world = node(models={"old": facts()}, ram_gib=9)
    old = only(plan(view(world), config(wants("old", context=2048, slots=1))))
    both = node(
        models={"new": facts(), "old": facts()},
        ram_gib=9,
        running=(Running(old, "old:1", resident=False),),
    )
    new, kept = plan(
        view(both),
        config(wants("new", context=2048, slots=1), wants("old", context=2048, slots=1)),
    ).decisions
    assert kept.served
    assert not new.served


def test_unified_memory_is_not_counted_twice() -> None:
    world = node(gpu("apu", 16, unified=True), models={"m": facts()}, ram_gib=16)
    decision = only(plan(view(world), config(wants("m"))))
    assert decision.served
    assert decision.memory_bytes < 16 * GIB
    small = node(gpu("apu", 16, unified=True), models={"m": facts(layers=110)}, ram_gib=16)
    assert only(plan(view(small), config(wants("m")))).strategy is not Strategy.SOLO_GPU


def test_what_runs_on_unified_memory_gets_back_what_it_had() -> None:
    apu = gpu("apu", 16, unified=True)
    world = node(apu, models={"m": facts()}, ram_gib=12)
    first = only(plan(view(world), config(wants("m", slots=1, context=8192))))
    assert first.layout.gpus == ("apu",)
    loaded = node(apu, models={"m": facts()}, ram_gib=12, running=running(first, resident=True))
    ram = loaded.hardware.ram
    left = replace(ram, available_bytes=ram.available_bytes - first.memory_bytes)
    loaded = replace(loaded, hardware=replace(loaded.hardware, ram=left))
    again = only(plan(view(loaded), config(wants("m", slots=2, context=4096))))
    assert again.served
    assert again.layout.gpus == ("apu",)


def test_the_prompts_that_neighbours_keep_are_not_planned_with() -> None:
    names = tuple(f"m{number}" for number in range(8))
    world = node(models={name: facts(layers=8) for name in names}, ram_gib=20)
    wishes = [wants(name, context=2048, slots=1) for name in names]
    served = [d for d in plan(view(world), config(*wishes)).decisions if d.served]
    total = sum(decision.memory_bytes for decision in served)
    cache = prompt_cache_bytes(20 * GIB)
    assert len(served) > 0
    assert total + cache * len(served) <= 20 * GIB - Reserve().ram_bytes


@pytest.mark.parametrize("drivable", [True, False])
def test_a_gpu_that_comes_late_is_taken(drivable: bool) -> None:
    late = () if drivable else (gpu(),)
    world = node(*late, models={"m": facts()}, drivable=drivable)
    first = only(plan(view(world), config(wants("m"))))
    assert first.strategy is Strategy.SOLO_CPU
    there = node(gpu(), models={"m": facts()}, running=running(first, resident=True))
    again = only(plan(view(there), config(wants("m"))))
    assert again.strategy is Strategy.SOLO_GPU


def test_what_fits_nowhere_is_soon_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # The brain asks for it on every pass, and feeds its watchdog only after that.
    tried: list[object] = []

    def counted(*arguments: object, **more: int) -> object:
        tried.append(arguments)
        return needs(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(fit, "needs", counted)
    gpus = tuple(gpu(f"GPU-{number}", 20) for number in range(4))
    huge = facts(layers=40, layer_bytes=8 * GIB, expert_share=0.9, train=131072)
    assert not only(plan(view(node(*gpus, models={"m": huge})), config(wants("m")))).served
    layouts = 4 + 3 + 2 * 40 + 1
    assert len(tried) <= 2 * layouts + 1


@settings(max_examples=60, deadline=None)
@given(
    frees=st.lists(st.floats(0.1, 40), max_size=3),
    ram=st.floats(1, 64),
    layers=st.integers(1, 80),
    share=st.sampled_from([0.0, 0.9]),
    reserve=st.integers(0, 4),
)
def test_no_device_is_ever_promised_more_than_it_has(
    frees: list[float], ram: float, layers: int, share: float, reserve: int
) -> None:
    gpus = tuple(gpu(f"GPU-{i}", free) for i, free in enumerate(frees))
    models = {name: facts(layers=layers, expert_share=share) for name in ("a", "b")}
    keep = Reserve(vram_bytes=reserve * 256 * MIB, ram_bytes=reserve * 512 * MIB)
    planned = plan(
        view(node(*gpus, models=models, ram_gib=ram)),
        config(wants("a"), wants("b"), node=NodeSettings(reserve=keep)),
    )
    used: dict[str, int] = {}
    for decision in planned.decisions:
        for use in decision.memory:
            used[use.device] = used.get(use.device, 0) + use.total_bytes
    for device, total in used.items():
        free = next((g.free_bytes for g in gpus if g.id == device), int(ram * GIB))
        limit = free - (keep.ram_bytes if device == RAM else keep.vram_bytes)
        assert total <= max(0, limit)


def test_a_long_context_takes_only_what_the_other_models_leave() -> None:
    both = {"a": facts(layers=16), "b": facts(layers=16)}
    one = node(gpu(free_gib=14), models=both, ram_gib=6)
    planned = plan(view(one), config(wants("a"), wants("b")))
    assert [d.strategy for d in planned.decisions] == [Strategy.SOLO_GPU, Strategy.SOLO_GPU]
    alone = plan(view(one), config(wants("a"))).decisions[0]
    assert alone.context > planned.decisions[0].context >= 8192


def test_an_offer_takes_no_more_than_a_conversation_needs() -> None:
    one = node(gpu(), models={"a": facts(layers=8)})
    model = wants("a")
    offered = offer(one, config(model), model)
    planned = plan(view(one), config(model)).decisions[0]
    assert offered.served
    assert offered.context < planned.context
    assert offered.memory_bytes < planned.memory_bytes


def test_what_runs_is_offered_as_it_runs() -> None:
    one = node(gpu(), models={"a": facts(layers=8)})
    model = wants("a")
    decision = plan(view(one), config(model)).decisions[0]
    again = replace(one, running=(Running(decision, "a:1", resident=True),))
    assert offer(again, config(model), model).context == decision.context


def limited(vram_gib: float | None = None, ram_gib: float | None = None) -> NodeSettings:
    vram, ram = (None if gib is None else int(gib * GIB) for gib in (vram_gib, ram_gib))
    return NodeSettings(limit=Limit(vram, ram))


def test_a_limit_bounds_what_is_planned_with_however_much_is_free() -> None:
    cards = gpu("GPU-1", 20), gpu("GPU-2", 1)
    budgets = budgets_of(node(*cards), config(node=limited(4, 8)))
    assert budgets.free("GPU-1") == 4 * GIB
    assert budgets.free("GPU-2") == 1 * GIB - Reserve().vram_bytes
    assert budgets.free(RAM) == 8 * GIB


def test_what_our_engines_hold_counts_towards_the_limit() -> None:
    settings = config(wants("m"), node=limited(ram_gib=8))
    decision = only(plan(view(node(models={"m": facts()})), settings))
    assert decision.strategy is Strategy.SOLO_CPU
    assert decision.memory_bytes <= 8 * GIB
    # Loaded, it is part of the same 8 GiB, and nothing moves.
    there = node(models={"m": facts()}, running=running(decision, resident=True))
    assert budgets_of(there, settings).free(RAM) == 8 * GIB
    other = offer(there, replace(settings, models=(wants("n"), wants("m"))), wants("n"))
    assert not other.served


def test_a_limit_that_was_lowered_replans_what_runs_beyond_it() -> None:
    first = only(plan(view(node(models={"m": facts()})), config(wants("m"))))
    there = node(models={"m": facts()}, running=running(first, resident=True))
    assert first.memory_bytes > 6 * GIB
    for lowered, kept in ((6, False), (31, True)):
        (again,) = plan(view(there), config(wants("m"), node=limited(ram_gib=lowered))).decisions
        assert (Code.KEPT in {reason.code for reason in again.reasons}) is kept
        assert again.memory_bytes <= lowered * GIB


def test_old_prompts_take_no_more_than_their_share_of_the_limit() -> None:
    assert prompt_cache_bytes(32 * GIB, Limit(ram_bytes=2 * GIB)) == 2 * GIB // 20
    assert prompt_cache_bytes(32 * GIB, Limit(ram_bytes=64 * GIB)) == prompt_cache_bytes(32 * GIB)


def test_who_has_a_limit_is_told_of_it() -> None:
    world = node(models={"m": facts()})
    bound = only(plan(view(world), config(wants("m"), node=limited(ram_gib=0.5))))
    assert bound.next_step.startswith("raise node.limit")
    assert "RAM has 0.5 GiB" in bound.blockers[-1].text
