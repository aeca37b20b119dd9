"""The exact ways to serve a model on one node alone, each with its predicted speed. Pure.

Whole on GPUs comes before all others. Of the others the fastest is taken: which of experts in RAM,
layers in RAM and no GPU at all that is depends on the machine.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from meshd.models.facts import GgufFacts
from meshd.node.inventory import Gpu
from meshd.planner.fit import Shape, by_quality, is_good, shape_memory
from meshd.planner.kv import layer_bytes
from meshd.planner.layout import (
    RAM,
    Budgets,
    by_room,
    whole_layouts,
    with_layers,
    without_experts,
)
from meshd.planner.pace import Pace, predict_solo
from meshd.planner.plan import Code, Considered, Layout, Reason, Strategy
from meshd.planner.workload import settings_of

GIB = 1024**3
# A GPU that holds any part works through prompts some seven times as fast as a processor alone
# (docs/benchmarks.md, "On a GPU"), so what leaves it idle has to be faster by this.
_IDLE_GPU = 1.2


@dataclass(frozen=True, slots=True)
class ExactWay:
    """:ivar shape: the best for which it fits, with the memory that it takes.

    :ivar good: its context is one that serves a conversation, in all slots.
    """

    layout: Layout
    shape: Shape
    tokens_s: float
    good: bool


def exact_ways(
    facts: GgufFacts,
    gpus: Sequence[Gpu],
    shapes: Iterable[Shape],
    budgets: Budgets,
    paces: Mapping[str, Pace],
) -> tuple[ExactWay, ...]:
    """The best of each kind that fits: first the one to take, then the fastest.

    A good context goes before a short one, and then speed. Where the model fits on GPUs as a whole
    nothing else is looked at. Remembered while nothing that it depends on changes.

    :param shapes: best first, not empty.
    :param paces: by device id; of what is missing, guesses.
    """
    tried = tuple(shapes)
    question = (tuple(gpus), tried, budgets, dict(paces))
    key = (id(facts), tried)
    kept = _known.get(key)
    if kept is not None and kept[0] is facts and kept[1] == question:
        return kept[2]
    ways = _exact_ways(facts, gpus, tried, budgets, paces)
    if len(_known) >= _KNOWN_MOST:
        _known.clear()
    # With the facts themselves, so that no others can have their identity meanwhile.
    _known[key] = (facts, question, ways)
    return ways


_KNOWN_MOST = 1024
_Question = tuple[tuple[Gpu, ...], tuple[Shape, ...], Budgets, Mapping[str, Pace]]
_known: dict[tuple[int, tuple[Shape, ...]], tuple[GgufFacts, _Question, tuple[ExactWay, ...]]] = {}


def _exact_ways(
    facts: GgufFacts,
    gpus: Sequence[Gpu],
    shapes: tuple[Shape, ...],
    budgets: Budgets,
    paces: Mapping[str, Pace],
) -> tuple[ExactWay, ...]:
    groups = [group for group in by_quality(facts, shapes) if group]
    kinds: tuple[_Kind, ...] = (_whole, _in_ram)
    if by_room(gpus, budgets):
        kinds = (_whole, _fewest_experts, _all_experts, _most_layers, _in_ram)
    unified = tuple(gpu.id for gpu in gpus if gpu.unified)
    found: list[ExactWay] = []
    for kind in kinds:
        way = _first(kind, facts, gpus, budgets, groups)
        if way is None or way.layout in [one.layout for one in found]:
            continue
        speed = predict_solo(facts, way.layout, way.shape.context, paces, unified=unified)
        found.append(replace(way, tokens_s=speed))
        if strategy_of(facts, way.layout) is Strategy.SOLO_GPU:
            break
    return tuple(sorted(found, key=lambda way: (not way.good, -_worth(way, gpus))))


def lost(
    facts: GgufFacts,
    gpus: Sequence[Gpu],
    shapes: Sequence[Shape],
    budgets: Budgets,
    ways: Sequence[ExactWay],
    node: str,
) -> tuple[Considered, ...]:
    """Those that were not taken, and why: nothing where the first is as good as any can be, or
    where there is none, whose reason says what is missing.

    :param ways: of `exact_ways`, the first one is taken.
    """
    if not ways or strategy_of(facts, ways[0].layout) is Strategy.SOLO_GPU:
        return ()
    found = []
    for way in ways[1:]:
        text = words_of(facts, way.layout)
        if ways[0].good and not way.good:
            reason = Reason(Code.TRIMMED, f"{text}: only with context {way.shape.context}")
        elif way.tokens_s > ways[0].tokens_s:
            reason = Reason(Code.SLOWER, f"{text}: slower with prompts")
        else:
            reason = Reason(Code.SLOWER, text)
        strategy = strategy_of(facts, way.layout)
        found.append(Considered((node,), way.tokens_s, reason, strategy=strategy))
    if gpus:
        found.append(_too_large(facts, gpus, shapes[-1], budgets, node))
    if not any(not way.layout.gpus for way in ways):
        memory = shape_memory(facts, Layout(), shapes[-1])
        text = _short("RAM alone", sum(one.total_bytes for one in memory), budgets.free(RAM))
        reason = Reason(Code.NO_MEMORY, text)
        found.append(Considered((node,), 0.0, reason, strategy=Strategy.SOLO_CPU))
    return tuple(found)


def strategy_of(facts: GgufFacts, layout: Layout) -> Strategy:
    if not layout.gpus:
        return Strategy.SOLO_CPU
    whole = sum(layout.gpu_layers) > len(facts.layers) and not layout.cpu_moe_layers
    return Strategy.SOLO_GPU if whole else Strategy.SOLO_OFFLOAD


def words_of(facts: GgufFacts, layout: Layout) -> str:
    """As a sentence says it after "fits"."""
    if not layout.gpus:
        return "in this node's memory, on the processor"
    where = "one GPU" if len(layout.gpus) == 1 else f"{len(layout.gpus)} GPUs of this node"
    layers = len(facts.layers)
    on_gpu = min(sum(layout.gpu_layers), layers)
    if layout.cpu_moe_layers:
        moved = "all" if layout.cpu_moe_layers >= layers else f"{layout.cpu_moe_layers} of {layers}"
        return f"on {where} with the experts of {moved} layers in RAM"
    if on_gpu < layers:
        return f"on {where} with {layers - on_gpu} of {layers} layers in RAM"
    return f"on {where} as a whole"


def _worth(way: ExactWay, gpus: Sequence[Gpu]) -> float:
    return way.tokens_s / _IDLE_GPU if gpus and not way.layout.gpus else way.tokens_s


_Kind = Callable[[GgufFacts, Sequence[Gpu], Budgets, tuple[Shape, ...]], Iterator[Layout]]


def _first(
    kind: _Kind,
    facts: GgufFacts,
    gpus: Sequence[Gpu],
    budgets: Budgets,
    groups: Sequence[tuple[Shape, ...]],
) -> ExactWay | None:
    """The first layout that fits, for the best shape; a good context before all others."""
    for group in groups:
        for layout in kind(facts, gpus, budgets, group):
            shape = _fitting(facts, layout, group, budgets)
            if shape is not None:
                return ExactWay(layout, shape, 0.0, is_good(facts, shape))
    return None


def _whole(
    facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets, group: tuple[Shape, ...]
) -> Iterator[Layout]:
    return whole_layouts(facts, gpus, budgets)


def _in_ram(
    facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets, group: tuple[Shape, ...]
) -> Iterator[Layout]:
    yield Layout()


def _fewest_experts(
    facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets, group: tuple[Shape, ...]
) -> Iterator[Layout]:
    """What each GPU holds falls with each layer whose experts leave it, so halving finds it."""
    layers = len(facts.layers)
    if not facts.moe:
        return
    caches = kv_bytes(facts, group[-1])

    def fits(moved: int) -> bool:
        layout = without_experts(facts, gpus, budgets, moved, caches)
        return _gpus_hold(facts, layout, group[-1], budgets)

    moved = bisect_left(range(layers + 1), True, lo=1, key=fits)
    if moved <= layers:
        yield without_experts(facts, gpus, budgets, moved, caches)


def _all_experts(
    facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets, group: tuple[Shape, ...]
) -> Iterator[Layout]:
    if facts.moe:
        caches = kv_bytes(facts, group[-1])
        yield without_experts(facts, gpus, budgets, len(facts.layers), caches)


def _most_layers(
    facts: GgufFacts, gpus: Sequence[Gpu], budgets: Budgets, group: tuple[Shape, ...]
) -> Iterator[Layout]:
    layers = len(facts.layers)

    def fits(left: int) -> bool:
        layout = with_layers(gpus, budgets, layers - left)
        return _gpus_hold(facts, layout, group[-1], budgets)

    left = bisect_left(range(layers), True, key=fits)
    if left < layers:
        yield with_layers(gpus, budgets, layers - left)


def _gpus_hold(facts: GgufFacts, layout: Layout, shape: Shape, budgets: Budgets) -> bool:
    return budgets.hold([use for use in shape_memory(facts, layout, shape) if use.device != RAM])


def _fitting(
    facts: GgufFacts, layout: Layout, group: tuple[Shape, ...], budgets: Budgets
) -> Shape | None:
    # The last shape takes least: most layouts are ruled out by it alone.
    if not budgets.hold(shape_memory(facts, layout, group[-1])):
        return None
    for shape in group:
        memory = shape_memory(facts, layout, shape)
        if budgets.hold(memory):
            return replace(shape, memory=memory)
    return None


def kv_bytes(facts: GgufFacts, shape: Shape) -> tuple[int, ...]:
    settings = settings_of(facts, shape)
    widest = max((layer.value_elements for layer in facts.layers), default=0)
    return tuple(
        0 if layer.prediction else layer_bytes(facts, layer, settings, value_widest=widest)
        for layer in facts.layers
    )


def _too_large(
    facts: GgufFacts, gpus: Sequence[Gpu], least: Shape, budgets: Budgets, node: str
) -> Considered:
    """The whole model on GPUs, and by how much it misses."""
    layouts = tuple(whole_layouts(facts, gpus, budgets))
    wanted = have = 0
    for use in shape_memory(facts, layouts[-1], least) if layouts else ():
        wanted += use.total_bytes if use.device != RAM else 0
        have += budgets.free(use.device) if use.device != RAM else 0
    text = _short("whole on GPUs", wanted or facts.file_bytes, have)
    return Considered((node,), 0.0, Reason(Code.NO_MEMORY, text), strategy=Strategy.SOLO_GPU)


def _short(what: str, wanted_bytes: int, have_bytes: int) -> str:
    return f"{what}: needs {wanted_bytes / GIB:.1f} GiB, {max(0, have_bytes) / GIB:.1f} to spare"
