"""What the mesh is asked to serve: the wishes of every node's configuration, made one.

Where they differ, the mesh does what the most demanding asks for (most replicas, the strictest
quality, all nodes that anybody names), and for what has no "more" (context, slots, source, split)
what the node with the smallest id says. So that all nodes agree without asking each other; a note
says what was overruled.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from meshd.mesh.record import NodeRecord, Wish
from meshd.mesh.view import MeshView
from meshd.quality import quality_of, strictest

_OVERRULED = ("source", "context", "slots", "split")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model as the whole mesh is asked to serve it; fields as in `Wish`.

    :ivar nodes: names or ids of the only nodes that may run it; empty for any.
    :ivar asked_by: ids of the nodes whose configuration names it.
    :ivar notes: where configurations contradict each other, and which one counts.
    """

    model: str
    source: str = ""
    context: int = 0
    slots: int = 0
    least: int = 1
    most: int | None = None
    quality: str = "exact"
    aliases: tuple[str, ...] = ()
    nodes: frozenset[str] = frozenset()
    split: str = "auto"
    asked_by: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(slots=True)
class _Sum:
    first: Wish
    first_node: NodeRecord
    order: int
    least: int
    most: int | None
    aliases: set[str]
    nodes: set[str]
    asked_by: list[str]
    quality: str
    differing: dict[str, tuple[object, str]] = field(default_factory=dict)
    stricter: set[str] = field(default_factory=set)

    def add(self, wish: Wish, node: NodeRecord, order: int, asked_by: list[str]) -> None:
        """:param asked_by: all nodes that say just the same; `node` is the first of them."""
        self.asked_by.extend(asked_by)
        if order < self.order:
            self.order = order
        # Nearly always all nodes say the same.
        if wish is self.first or wish == self.first:
            return
        self.least = max(self.least, wish.least)
        if self.most is not None:
            self.most = None if wish.most is None else max(self.most, wish.most)
        self.aliases.update(wish.aliases)
        self.nodes.update(wish.nodes)
        if wish.quality != self.quality:
            # What a node asks for is never less than it gets because another one asks for less.
            both = str(strictest(quality_of(self.quality), quality_of(wish.quality)))
            self.stricter.update({self.quality, wish.quality})
            self.quality = both
        for name in _OVERRULED:
            other = getattr(wish, name)
            if other != getattr(self.first, name):
                self.differing.setdefault(name, (other, node.name or node.id))


_MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def is_model_name(text: str) -> bool:
    """Whether a configuration could name a model like this; nobody serves what none could."""
    return _MODEL_NAME.fullmatch(text) is not None


def wanted(view: MeshView) -> tuple[Wanted, ...]:
    """One entry a model, in the order in which configurations name them, then by name.

    Suspect and dead nodes' wishes count: who is missed has not changed its mind, and what only its
    configuration named is what the others have to take over. Who left took its wishes along.
    """
    records = (*(member.record for member in view.members), *view.dead)
    kinds = list(_alike(sorted(records, key=lambda record: record.id)))
    question = [(_one_of(first.wishes), first.name, ids) for first, ids in kinds]
    for kept in _answers:
        if kept[0] == question:
            return kept[1]
    answer = _wanted(kinds)
    _answers.append((question, answer))
    return answer


# A pass asks twice, before and after its own record is there.
_answers: deque[tuple[list[tuple[tuple[Wish, ...], str, list[str]]], tuple[Wanted, ...]]] = deque(
    maxlen=8
)


def _wanted(kinds: list[tuple[NodeRecord, list[str]]]) -> tuple[Wanted, ...]:
    sums: dict[str, _Sum] = {}
    for first, ids in kinds:
        for order, wish in enumerate(first.wishes):
            if not is_model_name(wish.model):
                continue
            known = sums.get(wish.model)
            if known is None:
                known = sums[wish.model] = _Sum(
                    wish, first, order, wish.least, wish.most,
                    set(wish.aliases), set(wish.nodes), [], wish.quality,
                )  # fmt: skip
            known.add(wish, first, order, ids)
    ordered = sorted(sums.items(), key=lambda item: (item[1].order, item[0]))
    taken = set(sums)
    result = []
    for model, one in ordered:
        # An alias that two models want goes to the one that comes first.
        aliases = tuple(sorted(one.aliases - taken))
        taken.update(aliases)
        result.append(_one(model, one, aliases))
    return tuple(result)


def _alike(records: list[NodeRecord]) -> Iterator[tuple[NodeRecord, list[str]]]:
    """Nodes whose wishes are all the same, as most are: the first of each kind, and all ids."""
    kinds: dict[int, tuple[NodeRecord, list[str]]] = {}
    for record in records:
        if record.wishes:
            kinds.setdefault(id(_one_of(record.wishes)), (record, []))[1].append(record.id)
    yield from kinds.values()


_OBJECTS_MOST = 8192
_objects: dict[int, tuple[tuple[Wish, ...], tuple[Wish, ...]]] = {}
_kinds: dict[tuple[Wish, ...], tuple[Wish, ...]] = {}


def _one_of(wishes: tuple[Wish, ...]) -> tuple[Wish, ...]:
    """One object for equal wishes. Those of a hundred models are compared only once a record."""
    known = _objects.get(id(wishes))
    if known is not None and known[0] is wishes:
        return known[1]
    if len(_objects) >= _OBJECTS_MOST or len(_kinds) >= _OBJECTS_MOST:
        # Within one pass two objects for equal wishes do no harm: they count as two kinds.
        _objects.clear()
        _kinds.clear()
    same = _kinds.setdefault(wishes, wishes)
    _objects[id(wishes)] = (wishes, same)
    return same


def _one(model: str, one: _Sum, aliases: tuple[str, ...]) -> Wanted:
    first = one.first_node.name or one.first_node.id
    notes = [
        f"{name}: {getattr(one.first, name)!r} on {first}, {other!r} on {node}; {first}'s is used"
        for name, (other, node) in sorted(one.differing.items())
    ]
    if one.stricter:
        said = " and ".join(sorted(one.stricter))
        notes.append(f"quality: {said} are asked for; {one.quality} keeps all of them")
    notes.extend(
        f"alias {alias} is another model's name or alias and is dropped"
        for alias in sorted(one.aliases.difference(aliases) - {model})
    )
    least, most = max(0, one.least), one.most
    if most is not None and most < least:
        notes.append(f"replicas: at most {most} and at least {least}; {least} are kept")
        most = least
    return Wanted(
        model=model,
        source=one.first.source,
        context=one.first.context,
        slots=one.first.slots,
        least=least,
        most=most,
        quality=one.quality,
        aliases=aliases,
        nodes=frozenset(one.nodes),
        split=one.first.split,
        asked_by=frozenset(one.asked_by),
        notes=tuple(notes),
    )
