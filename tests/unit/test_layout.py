from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from meshd.models.facts import GgufFacts, LayerFacts
from meshd.node.inventory import Gpu, Vendor
from meshd.planner.layout import RAM, Budgets, whole_layouts, with_layers, without_experts
from meshd.planner.plan import DeviceUse, Layout

GIB = 1024**3


def facts(layers: int = 8, experts: int = 0) -> GgufFacts:
    return GgufFacts(
        files=("/m.gguf",),
        file_bytes=GIB,
        architecture="llama",
        name="m",
        quantisation="Q8_0",
        parameters=1,
        layers=(LayerFacts(GIB // 10, 0, 8),) * layers,
        embedding_length=1024,
        heads=8,
        key_length=128,
        value_length=128,
        context_train=8192,
        vocabulary_size=4096,
        vocabulary_sha256="",
        embedding_bytes=0,
        output_bytes=0,
        tied_embeddings=True,
        other_bytes=0,
        experts=experts,
    )


def gpu(name: str, unified: bool = False) -> Gpu:
    return Gpu(name, Vendor.NVIDIA, name, "0000:01:00.0", 24 * GIB, 20 * GIB, unified)


def test_the_roomiest_gpu_comes_first_and_a_full_one_never() -> None:
    budgets = Budgets({"a": GIB, "b": 3 * GIB, "c": -1, RAM: GIB})
    found = list(whole_layouts(facts(), [gpu("a"), gpu("b"), gpu("c")], budgets))
    assert found[:2] == [Layout(("b",), (9,)), Layout(("a",), (9,))]
    assert found[2] == Layout(("b", "a"), (7, 2))
    assert len(found) == 3


@given(
    layers=st.integers(1, 128),
    free=st.lists(st.integers(1, 10**12), min_size=1, max_size=8),
)
def test_a_spread_uses_every_layer_once(layers: int, free: list[int]) -> None:
    names = [f"g{i}" for i in range(len(free))]
    budgets = Budgets(dict(zip(names, free, strict=True)))
    for layout in whole_layouts(facts(layers), [gpu(name) for name in names], budgets):
        assert sum(layout.gpu_layers) == layers + 1
        assert all(count > 0 for count in layout.gpu_layers)
        assert len(set(layout.gpus)) == len(layout.gpus) == len(layout.gpu_layers)


def test_experts_leave_and_layers_leave() -> None:
    budgets = Budgets({"a": GIB, RAM: GIB})
    layout = without_experts(facts(4, experts=16), [gpu("a")], budgets, 3)
    assert layout == Layout(("a",), (5,), cpu_moe_layers=3)
    assert with_layers([gpu("a")], budgets, 3) == Layout(("a",), (3,))


def test_without_a_gpu_nothing_is_laid_over_gpus() -> None:
    budgets = Budgets({RAM: GIB})
    assert list(whole_layouts(facts(), [], budgets)) == []


@given(
    layers=st.integers(1, 96),
    free=st.lists(st.integers(1, 10**12), min_size=1, max_size=6),
    share=st.integers(0, 100),
)
def test_without_their_experts_each_gpu_gets_bytes_by_its_room(
    layers: int, free: list[int], share: int
) -> None:
    layer_bytes = GIB // 10
    mixture = replace(
        facts(layers, experts=16),
        layers=(LayerFacts(layer_bytes, layer_bytes * share // 100, 8),) * layers,
    )
    names = [f"g{i}" for i in range(len(free))]
    budgets = Budgets(dict(zip(names, free, strict=True)))
    gpus = [gpu(name) for name in names]
    for layout in (without_experts(mixture, gpus, budgets, n) for n in range(layers + 1)):
        assert sum(layout.gpu_layers) == layers + 1
        assert all(count > 0 for count in layout.gpu_layers)
        moved, first, held = layout.cpu_moe_layers, 0, {}
        for name, count in zip(layout.gpus, layout.gpu_layers, strict=True):
            mine = range(first, min(first + count, layers))
            light = sum(number < moved for number in mine)
            held[name] = len(mine) * layer_bytes - light * (layer_bytes * share // 100)
            first += count
        for name, size_bytes in held.items():
            fair = sum(held.values()) * budgets.free(name) / sum(free)
            assert abs(size_bytes - fair) <= layer_bytes + 1


def test_unified_memory_is_spent_once() -> None:
    budgets = Budgets({RAM: 10 * GIB}, unified=("apu",))
    both = (DeviceUse("apu", 6 * GIB, 0, 0), DeviceUse(RAM, 6 * GIB, 0, 0))
    assert budgets.hold(both[:1])
    assert not budgets.hold(both)


def test_budgets_hold_exactly_what_is_there() -> None:
    budgets = Budgets({"a": 100, RAM: 100})
    assert budgets.hold((DeviceUse("a", 60, 30, 10),))
    assert not budgets.hold((DeviceUse("a", 60, 30, 11),))
