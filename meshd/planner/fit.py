"""How a model fits one node: which layout, which context, how many slots. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from meshd.config.settings import ModelSettings
from meshd.models.facts import GgufFacts
from meshd.planner.needs import needs
from meshd.planner.plan import DeviceUse, Layout

# A context that serves a conversation with tools; more is taken while memory is there.
_GOOD_CONTEXT = 8192
_MOST_CONTEXT = 65536
_LEAST_CONTEXT = 2048
_SLOTS = (4, 2, 1)


@dataclass(frozen=True, slots=True)
class Shape:
    """Tokens a request and requests at a time. :ivar memory: what that takes, once laid out."""

    context: int
    slots: int
    memory: tuple[DeviceUse, ...] = ()


def shapes(facts: GgufFacts, model: ModelSettings, *, modest: bool) -> Iterator[Shape]:
    """Contexts and slots to try, best first: many short slots before few, long contexts last.

    :param modest: nothing beyond a context that serves a conversation, as other models wait.
    """
    trained = facts.context_train or _GOOD_CONTEXT
    slots = _SLOTS if model.slots == "auto" else (model.slots,)
    if model.context != "auto":
        for count in slots:
            yield Shape(model.context, count)
        return
    most = _GOOD_CONTEXT if modest else _MOST_CONTEXT
    for context in _halvings(min(trained, most), min(trained, _GOOD_CONTEXT)):
        yield Shape(context, slots[0])
    for count in slots[1:]:
        yield Shape(min(trained, _GOOD_CONTEXT), count)
    if trained > _LEAST_CONTEXT:
        shorter = min(trained, _GOOD_CONTEXT) // 2
        for context in _halvings(shorter, _LEAST_CONTEXT):
            yield Shape(context, slots[-1])


def _halvings(first: int, last: int) -> Iterator[int]:
    """From `first` down to `last` by powers of two, both ends included."""
    value = first
    while value > last:
        yield value
        value = 1 << ((value - 1).bit_length() - 1)
    yield last


def is_good(facts: GgufFacts, shape: Shape) -> bool:
    """A context that serves a conversation, in all slots."""
    good = min(facts.context_train or _GOOD_CONTEXT, _GOOD_CONTEXT)
    return shape.context >= good and shape.slots == _SLOTS[0]


def by_quality(
    facts: GgufFacts, shapes: Iterable[Shape]
) -> tuple[tuple[Shape, ...], tuple[Shape, ...]]:
    """The good ones, and the others: only where none of those fits."""
    tried = tuple(shapes)
    roomy = tuple(shape for shape in tried if is_good(facts, shape))
    return roomy, tuple(shape for shape in tried if shape not in roomy)


def shape_memory(facts: GgufFacts, layout: Layout, shape: Shape) -> tuple[DeviceUse, ...]:
    """What the layout takes. Remembered, for it does not depend on how much memory is free, and
    every pass asks for the same again.
    """
    key = (id(facts), layout, shape.context, shape.slots)
    known = _known.get(key)
    if known is not None and known[0] is facts:
        return known[1]
    memory = needs(facts, layout, context=shape.context, slots=shape.slots)
    if len(_known) >= _KNOWN_MOST:
        _known.clear()
    # With the facts themselves, so that no others can have their identity meanwhile.
    _known[key] = (facts, memory)
    return memory


_KNOWN_MOST = 1 << 14
_known: dict[tuple[int, Layout, int, int], tuple[GgufFacts, tuple[DeviceUse, ...]]] = {}
