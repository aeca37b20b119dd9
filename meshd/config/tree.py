"""A parsed file: values that still know where they were written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from meshd.config.findings import Mark
from meshd.config.scalars import ScalarValue


@dataclass(frozen=True, slots=True)
class Scalar:
    """:ivar text: as written, quotes and escapes resolved."""

    mark: Mark
    value: ScalarValue
    text: str


@dataclass(frozen=True, slots=True)
class ListNode:
    mark: Mark
    items: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """:ivar mark: of the key; the value has its own."""

    key: str
    mark: Mark
    value: Node


@dataclass(frozen=True, slots=True)
class MapNode:
    mark: Mark
    entries: tuple[Entry, ...]

    def entry(self, key: str) -> Entry | None:
        return next((one for one in self.entries if one.key == key), None)

    def get(self, key: str) -> Node | None:
        found = self.entry(key)
        return found.value if found else None


Node = Scalar | ListNode | MapNode
Path = tuple[str | int, ...]


def plain(node: Node) -> object:
    """The tree as dicts, lists and scalars, as a JSON Schema validator wants them."""
    match node:
        case Scalar():
            return node.value
        case ListNode():
            return [plain(item) for item in node.items]
        case MapNode():
            return {entry.key: plain(entry.value) for entry in node.entries}


def at(root: Node, path: Iterable[str | int]) -> Node:
    """The node at a path that exists in the tree."""
    node = root
    for step in path:
        if isinstance(node, ListNode) and isinstance(step, int):
            node = node.items[step]
        elif isinstance(node, MapNode) and isinstance(step, str) and (sub := node.get(step)):
            node = sub
        else:
            raise KeyError(step)
    return node


def without(node: Node, paths: frozenset[Path], here: Path = ()) -> Node | None:
    """The tree less what lies at the given paths; None when that is everything."""
    if here in paths:
        return None
    if isinstance(node, ListNode):
        items = [without(item, paths, (*here, i)) for i, item in enumerate(node.items)]
        return ListNode(node.mark, tuple(item for item in items if item is not None))
    if isinstance(node, MapNode):
        entries = []
        for entry in node.entries:
            value = without(entry.value, paths, (*here, entry.key))
            if value is not None:
                entries.append(Entry(entry.key, entry.mark, value))
        return MapNode(node.mark, tuple(entries))
    return node


def path_text(path: Iterable[str | int]) -> str:
    """``("models", 0, "slots")`` as ``models[0].slots``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
